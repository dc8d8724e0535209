// One handshake with an OpenClaw gateway, as its own clients make it; prints one JSON object that says how it ended.
//
//   node device_client.mjs '{"ws": "<node_modules>", "url": "wss://172.18.0.2:18789", "token": "..."}'
//
// Options: ws        the node_modules directory that holds the `ws` package
//          url, token
//          ca        file with the CA to trust (default: Node's own)
//          pfx, passphrase  PKCS#12 file with the client's certificate, and its password
//          address   where to find the URL's host (default: the resolver's answer)
//          over      "h1" (default), or "h2": extended CONNECT, RFC 8441
//          headers   [[name, value or values], ...] to send on the upgrade, over the client's own; `host` and `connection` too
//          identity  file with the device identity, made if absent (default: a new one, which is not saved); "none": no device at all
//          scopes, role, client, mode
//          password  in place of a token
//          build     the build of the Control UI, which newer gateways compare with their own
//          call      a method to call after the handshake
//
// Ends: {end: "hello", scopes, deviceToken, called?}     accepted
//       {end: "closed", code, reason, error?}            closed by the gateway; error is its answer to `connect`
//       {end: "refused", status, body}                   an HTTP answer other than 101
//       {end: "failed", error}                           no connection
import crypto from "node:crypto";
import fs from "node:fs";
import http2 from "node:http2";
import { createRequire } from "node:module";

const ALL_SCOPES = ["admin", "approvals", "pairing", "read", "write"].map((scope) => `operator.${scope}`);
const options = {
  over: "h1", headers: [], scopes: ALL_SCOPES, role: "operator", client: "cli", mode: "cli", timeout: 20_000,
  ...JSON.parse(process.argv[2]),
};
const WebSocket = createRequire(`${options.ws}/`)("ws");
const found = { address: options.address, family: 4 };
const connection = {
  ca: options.ca && fs.readFileSync(options.ca),
  pfx: options.pfx && fs.readFileSync(options.pfx),
  passphrase: options.passphrase,
  lookup: options.address && ((_host, { all }, done) => (all ? done(null, [found]) : done(null, found.address, found.family))),
};

function end(result) {
  console.log(JSON.stringify(result));
  process.exit(0);
}
setTimeout(() => end({ end: "failed", error: `no end after ${options.timeout} ms` }), options.timeout);

// A device is an ed25519 key; its id is the SHA-256 of the raw public key.
function identity() {
  if (options.identity === "none") return null;
  if (options.identity && fs.existsSync(options.identity)) return JSON.parse(fs.readFileSync(options.identity, "utf8"));
  const keys = crypto.generateKeyPairSync("ed25519");
  const raw = keys.publicKey.export({ type: "spki", format: "der" }).subarray(-32);
  const device = {
    version: 1,
    deviceId: crypto.createHash("sha256").update(raw).digest("hex"),
    publicKeyPem: keys.publicKey.export({ type: "spki", format: "pem" }),
    privateKeyPem: keys.privateKey.export({ type: "pkcs8", format: "pem" }),
    createdAtMs: Date.now(),
  };
  if (options.identity) fs.writeFileSync(options.identity, JSON.stringify(device), { mode: 0o600 });
  return device;
}

// The signature is over this line, which binds the key to the challenge and to everything that is asked for.
function signed(device, nonce) {
  const signedAt = Date.now();
  const { client, mode, role, scopes, token } = options;
  const line = ["v2", device.deviceId, client, mode, role, scopes.join(","), signedAt, token ?? "", nonce].join("|");
  return {
    id: device.deviceId,
    publicKey: crypto.createPublicKey(device.publicKeyPem).export({ type: "spki", format: "der" }).subarray(-32).toString("base64url"),
    signature: crypto.sign(null, Buffer.from(line), device.privateKeyPem).toString("base64url"),
    signedAt,
    nonce,
  };
}

function connectParams(nonce) {
  const device = identity();
  return {
    minProtocol: 3,
    maxProtocol: 4,
    client: { id: options.client, version: "1.0.0", platform: "linux", mode: options.mode, buildId: options.build },
    role: options.role,
    scopes: options.scopes,
    caps: [],
    auth: options.password ? { password: options.password } : options.token === undefined ? undefined : { token: options.token },
    device: device ? signed(device, nonce) : undefined,
  };
}

function overHttp1() {
  const socket = new WebSocket(options.url, {
    ...connection,
    // Sets the headers on the finished request, because `ws` has no option for Host and Connection.
    finishRequest: (request) => {
      for (const [name, value] of options.headers) request.setHeader(name, value);
      request.end();
    },
  });
  socket.on("unexpected-response", (_request, response) => {
    let body = "";
    response.on("data", (chunk) => (body += chunk));
    response.on("end", () => end({ end: "refused", status: response.statusCode, body }));
  });
  return socket;
}

// `ws` has no HTTP/2. It gets the CONNECT stream in place of the socket that it would have
// upgraded.
async function overHttp2() {
  const url = new URL(options.url);
  const session = http2.connect(`https://${url.host}`, connection);
  session.on("error", (error) => end({ end: "failed", error: String(error) }));
  const settings = await new Promise((resolve) => session.once("remoteSettings", resolve));
  if (!settings.enableConnectProtocol) end({ end: "failed", error: "the server offers no extended CONNECT" });
  const stream = session.request({
    ":method": "CONNECT", ":protocol": "websocket", ":scheme": "https", ":authority": url.host, ":path": url.pathname + url.search,
    "sec-websocket-version": "13",
    ...Object.fromEntries(options.headers.map(([name, value]) => [name.toLowerCase(), value])),
  });
  const { ":status": status } = await new Promise((resolve, reject) => stream.once("response", resolve).once("error", reject));
  if (status !== 200) {
    let body = "";
    for await (const chunk of stream) body += chunk;
    end({ end: "refused", status, body });
  }
  const socket = new WebSocket(null, undefined, {});
  socket._isServer = false;
  // Waits until the handlers below are installed, so that they see the first frame.
  setImmediate(() => {
    socket.setSocket(stream, Buffer.alloc(0), { allowSynchronousEvents: false, maxPayload: 100 << 20, skipUTF8Validation: false });
  });
  return socket;
}

let socket;
try {
  socket = options.over === "h2" ? await overHttp2() : overHttp1();
} catch (error) {
  end({ end: "failed", error: String(error) });
}

let refusal;
let hello;
const send = (id, method, params) => socket.send(JSON.stringify({ type: "req", id, method, params }));
socket.on("message", (data) => {
  const frame = JSON.parse(data);
  if (frame.event === "connect.challenge") return send("connect", "connect", connectParams(frame.payload.nonce));
  if (frame.id === "connect" && !frame.ok) return (refusal = frame.error);
  if (frame.id === "connect") {
    const { auth } = frame.payload;
    hello = { end: "hello", scopes: auth?.scopes ?? null, deviceToken: auth?.deviceToken };
    return options.call ? send("call", options.call, {}) : end(hello);
  }
  if (frame.id === "call") end({ ...hello, called: frame.ok ? { ok: true } : { ok: false, error: frame.error } });
});
socket.on("close", (code, reason) => end({ end: "closed", code, reason: String(reason), error: refusal }));
socket.on("error", (error) => end({ end: "failed", error: String(error) }));
