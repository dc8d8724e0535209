// The pod of `helm test`: from another pod, through the Service. Plaintext must be refused, and behind TLS there must be
// a gateway that greets a WebSocket. The certificate is not verified: this pod has no CA.
const http = require("node:http");
const https = require("node:https");

const host = process.env.GATEWAY_HOST;
const port = Number(process.env.GATEWAY_PORT);

function end(problem) {
  console.log(problem ? `FAILED: ${problem}` : "ok: TLS only, and the gateway answers behind it");
  process.exit(problem ? 1 : 0);
}

function greeting() {
  const request = https.get({
    host,
    port,
    rejectUnauthorized: false,
    ALPNProtocols: ["http/1.1"],
    headers: {
      Connection: "Upgrade",
      Upgrade: "websocket",
      "Sec-WebSocket-Version": "13",
      "Sec-WebSocket-Key": "bG9vcGdhdGUgaGVsbSB0ZQ==",
    },
  });
  request.on("upgrade", (response, socket, head) => {
    let heard = head.toString("latin1");
    const listen = () => heard.includes("connect.challenge") && end();
    socket.on("data", (data) => {
      heard += data.toString("latin1");
      listen();
    });
    socket.on("close", () => end("the WebSocket closed before the gateway's greeting"));
    listen();
  });
  request.on("response", (response) => end(`the WebSocket upgrade got HTTP ${response.statusCode}`));
  request.on("error", (error) => end(`TLS: ${error.message}`));
}

setTimeout(() => end("no greeting within 60 s"), 60_000);
http
  .get({ host, port }, ({ statusCode }) => (statusCode === 400 ? greeting() : end("the port answers plaintext HTTP")))
  .on("error", (error) => (error.code === "ECONNREFUSED" || error.code === "ENOTFOUND" ? end(error.message) : greeting()));
