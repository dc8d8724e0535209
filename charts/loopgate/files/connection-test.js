// The pods of `helm test`: from another pod, through the Service. Plaintext must be refused, and behind TLS there must be a gateway that
// greets a WebSocket. With LANE, the gateway must see this pod on that lane. The certificate is not verified: this pod has no CA.
const http = require("node:http");
const https = require("node:https");

const host = process.env.GATEWAY_HOST;
const port = Number(process.env.GATEWAY_PORT);
const lane = process.env.LANE;
// A new pod is an agent as soon as the API server has reported its address.
const deadline = Date.now() + 1000 * (process.env.LANE_SECONDS ?? 30);

function end(problem) {
  const right = `ok: TLS only, and the gateway answers behind it${lane ? ` on the ${lane} lane` : ""}`;
  console.log(problem ? `FAILED: ${problem}` : right);
  process.exit(problem ? 1 : 0);
}

function get(path, then) {
  https
    .get({ host, port, path, rejectUnauthorized: false, agent: false, ALPNProtocols: ["http/1.1"] }, (response) => {
      let body = "";
      response.on("data", (data) => (body += data));
      response.on("end", () => then(response.statusCode, body));
    })
    .on("error", (error) => end(`TLS: ${error.message}`));
}

// How the gateway sees this client. Newer versions state their version to local clients only; older ones serve the canvas to these only.
function see(then) {
  get("/startupz", (_, body) => {
    try {
      return then("version" in JSON.parse(body) ? "agent" : "external");
    } catch {
      get("/__openclaw__/canvas/", (status) => then(status === 200 ? "agent" : "external"));
    }
  });
}

function checkLane() {
  if (!lane) return end();
  see((seen) => {
    if (seen === lane) return end();
    if (Date.now() > deadline) return end(`this pod is on the ${seen} lane, and should be on the ${lane} lane`);
    setTimeout(checkLane, 1000);
  });
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
    let received = head.toString("latin1");
    let greeted = false;
    const listen = () => {
      if (greeted || !received.includes("connect.challenge")) return;
      greeted = true;
      socket.destroy();
      checkLane();
    };
    socket.on("data", (data) => {
      received += data.toString("latin1");
      listen();
    });
    socket.on("close", () => greeted || end("the WebSocket closed before the gateway's greeting"));
    listen();
  });
  request.on("response", (response) => end(`the WebSocket upgrade got HTTP ${response.statusCode}`));
  request.on("error", (error) => end(`TLS: ${error.message}`));
}

setTimeout(() => end("no greeting within 60 s"), 60_000);
http
  .get({ host, port }, ({ statusCode }) => (statusCode === 400 ? greeting() : end("the port answers plaintext HTTP")))
  .on("error", (error) => (error.code === "ECONNREFUSED" || error.code === "ENOTFOUND" ? end(error.message) : greeting()));
