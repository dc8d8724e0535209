// Clients written with Node.js. Usage: CA=FILE node client.mjs COMMAND URL. Prints one line of JSON.
import { readFileSync } from "node:fs";
import http2 from "node:http2";
import https from "node:https";

const ca = readFileSync(process.env.CA);
const [command, address] = process.argv.slice(2);
const url = new URL(address);
const finish = (result) => {
  console.log(JSON.stringify(result));
  process.exit(0);
};
setTimeout(() => finish({ error: "timeout" }), 12_000);
process.on("uncaughtException", (error) => finish({ error: error.code ?? error.message }));

/** Sends a request over HTTP/2; resolves with everything that was received. */
function h2(headers, body) {
  const session = http2.connect(url.origin, { ca, ALPNProtocols: ["h2"] });
  session.on("error", (error) => finish({ error: error.code ?? error.message }));
  return new Promise((resolve) => {
    const begin = () => {
      const stream = session.request({ ":path": url.pathname + url.search, ...headers }, { endStream: false });
      const seen = { interim: [], interimFields: [], body: "", trailers: null, status: null, code: null };
      stream.on("headers", (fields) => {
        seen.interim.push(fields[":status"]);
        seen.interimFields.push(fields.link ?? null);
      });
      stream.on("response", (fields) => (seen.status = fields[":status"]));
      stream.on("trailers", (fields) => (seen.trailers = fields["x-checksum"] ?? null));
      stream.on("data", (data) => (seen.body += data));
      stream.on("error", () => {});
      stream.on("close", () => resolve({ ...seen, code: stream.rstCode }));
      if (body !== undefined) stream.end(body);
    };
    session.once("remoteSettings", (settings) =>
      headers[":protocol"] && !settings.enableConnectProtocol ? finish({ error: "no RFC 8441" }) : begin(),
    );
  });
}

const commands = {
  cookies: () => h2({ cookie: Array.from({ length: 140 }, (_, n) => `name${n}=value${n}`) }, ""),
  hints2: () => h2({}, ""),
  trailers2: () => h2({ te: "trailers" }, ""),
  reset: () => h2({ ":method": "CONNECT", ":protocol": "websocket", "sec-websocket-version": "13", "sec-websocket-key": "bG9vcGdhdGUgdGVzdCAxNg==" }),
  fetch: async () => {
    const response = await fetch(address, { method: "DELETE", body: new Blob(["hello"]).stream(), duplex: "half" });
    return { status: response.status, body: await response.text() };
  },
  hints1: () =>
    new Promise((resolve) => {
      const seen = { interim: [], interimFields: [] };
      const request = https.get(address, { ca }, (response) => {
        response.resume();
        response.on("end", () => resolve({ ...seen, status: response.statusCode }));
      });
      request.on("information", (information) => {
        seen.interim.push(information.statusCode);
        seen.interimFields.push(information.headers.link ?? null);
      });
    }),
};
finish(await commands[command]());
