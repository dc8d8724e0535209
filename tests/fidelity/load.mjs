// Mixed load over HTTP/1.1 and HTTP/2. Usage: CA=FILE node load.mjs URL SECONDS. Prints one line of JSON for each request: its id, how it
// ended for the client ("whole", "broken", "wrong" or "hung"), the status code and the length of the body in bytes.
import { createHash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import http2 from "node:http2";
import https from "node:https";

const ca = readFileSync(process.env.CA);
const url = new URL(process.argv[2]);
const until = Date.now() + 1000 * Number(process.argv[3]);
const run = randomBytes(4).toString("hex");
let number = 0;

/** A random request: a download of the length in its target, an upload whose digest is returned, interim responses or trailers. */
function randomRequest() {
  const size = Math.floor(Math.random() ** 3 * 400_000);
  const headers = { "x-request-id": `${run}-${number++}` };
  const kind = Math.random();
  if (kind < 0.05) return { method: "GET", path: "/hints", headers, check: (body) => body.toString() === "hints" };
  if (kind < 0.1) return { method: "GET", path: "/trailers", headers, check: (body) => body.toString() === "body" };
  if (kind < 0.55) {
    const chunked = Math.random() < 0.5 ? "&chunked" : "";
    return { method: "GET", path: `/bytes?${size}${chunked}`, headers, check: (body) => body.length === size };
  }
  const body = Buffer.alloc(size, headers["x-request-id"]);
  const digest = createHash("sha256").update(body).digest("hex");
  return { method: "POST", path: "/echo", headers, body, check: (answer) => JSON.parse(answer).sha256 === digest };
}

/** The milliseconds after which a request counts as hung: more than loopgate waits for a gateway that restarts. */
const TIMEOUT = 15_000;

function report(request, protocol, status, body, clean, hung) {
  // Only the gateway's responses are checked; loopgate's own error responses are whole too.
  const right = !clean || status !== 200 || request.check(body);
  const outcome = hung ? "hung" : !clean ? "broken" : right ? "whole" : "wrong";
  console.log(JSON.stringify({ id: request.headers["x-request-id"], protocol, outcome, status, bytes: body.length }));
}

const agent = new https.Agent({ keepAlive: true, ca, maxSockets: 64 });

function requestH1(request) {
  return new Promise((resolve) => {
    const chunks = [];
    let status = null;
    let reported = false;
    const end = (clean, hung = false) => {
      if (reported) return;
      reported = true;
      clearTimeout(timer);
      report(request, "h1", status, Buffer.concat(chunks), clean, hung);
      resolve();
    };
    const timer = setTimeout(() => {
      end(false, true);
      outgoing.destroy();
    }, TIMEOUT);
    const { method, path, headers, body } = request;
    const length = body ? { "content-length": body.length } : {};
    const outgoing = https.request({ host: url.hostname, port: url.port, agent, ca, method, path, headers: { ...headers, ...length } }, (response) => {
      status = response.statusCode;
      response.on("data", (data) => chunks.push(data));
      response.on("end", () => end(response.complete));
      response.on("error", () => end(false));
      response.on("close", () => end(false));
    });
    outgoing.on("error", () => status === null && end(false));
    outgoing.end(body);
  });
}

function connect() {
  const session = http2.connect(url.origin, { ca });
  session.on("error", () => {});
  return session;
}

function requestH2(session, request) {
  return new Promise((resolve) => {
    const chunks = [];
    let status = null;
    let ended = false;
    let hung = false;
    const { method, path, headers, body } = request;
    const stream = session.request({ ":method": method, ":path": path, ...headers }, { endStream: !body });
    stream.on("response", (fields) => (status = fields[":status"]));
    stream.on("data", (data) => chunks.push(data));
    stream.on("end", () => (ended = true));
    stream.on("error", () => {});
    const timer = setTimeout(() => {
      hung = true;
      stream.close(http2.constants.NGHTTP2_CANCEL);
      setTimeout(() => session.destroy(), 1000);
    }, TIMEOUT);
    stream.on("close", () => {
      clearTimeout(timer);
      report(request, "h2", status, Buffer.concat(chunks), ended && status !== null && stream.rstCode === 0, hung);
      resolve();
    });
    if (body) stream.end(body);
  });
}

async function worker(protocol) {
  let session = protocol === "h2" ? connect() : null;
  while (Date.now() < until) {
    if (!session) {
      await requestH1(randomRequest());
      continue;
    }
    if (session.closed || session.destroyed) session = connect();
    await requestH2(session, randomRequest());
  }
  session?.close();
}

process.on("uncaughtException", (error) => {
  console.error(error);
  process.exit(1);
});
await Promise.all([..."11112222"].map((digit) => worker(`h${digit}`)));
agent.destroy();
