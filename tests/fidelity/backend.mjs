// The backend of the fidelity tests: a Node.js server. Each of its paths has one behaviour that gateways may have.
// Usage: node backend.mjs PORT. Prints "ready" when it listens.
import { createHash } from "node:crypto";
import http from "node:http";

const MASK = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/** Responds with the request that arrived: method, target, header fields, length and digest of the body, trailers. */
async function echo(request, response) {
  const hash = createHash("sha256");
  let length = 0;
  try {
    for await (const chunk of request) {
      hash.update(chunk);
      length += chunk.length;
    }
  } catch {
    return; // The proxy closed the connection.
  }
  const seen = {
    method: request.method,
    target: request.url,
    fields: request.rawHeaders,
    length,
    sha256: hash.digest("hex"),
    trailers: request.rawTrailers,
  };
  const body = JSON.stringify(seen);
  response.writeHead(200, { "content-type": "application/json", "content-length": Buffer.byteLength(body) });
  response.end(body);
}

/** Sends 64 KiB of a body that should be longer, then resets the connection. */
function cut(request, response) {
  const chunked = request.url.includes("chunked");
  response.writeHead(200, chunked ? {} : { "content-length": 1 << 20 });
  response.write(Buffer.alloc(64 * 1024, "x"), () => setTimeout(() => request.socket.resetAndDestroy(), 20));
}

/** Refuses an upload without reading it, and closes the connection. */
function refuse(request, response) {
  response.writeHead(413, { connection: "close", "content-length": 9 });
  response.end("too large", () => request.socket.destroySoon());
}

const paths = {
  "/echo": echo,
  "/bytes": (request, response) => {
    const length = Number.parseInt(request.url.split("?")[1], 10);
    if (!request.url.includes("chunked")) response.setHeader("content-length", length);
    // Send in pieces, so that responses are incomplete when this process is killed.
    const send = (left) => {
      if (left === 0) return response.end();
      const piece = Math.min(left, 64 * 1024);
      response.write(Buffer.alloc(piece, "x"));
      setTimeout(send, 10, left - piece);
    };
    send(length);
  },
  "/cut": cut,
  "/refuse": refuse,
  "/hints": (request, response) => {
    response.writeProcessing();
    response.writeEarlyHints({ link: "</style.css>; rel=preload; as=style" });
    setTimeout(() => response.end("hints"), 50);
  },
  "/trailers": (request, response) => {
    response.writeHead(200, { "content-type": "text/plain" });
    response.write("body");
    response.addTrailers({ "x-checksum": "abc" });
    response.end();
  },
  "/fields": (request, response) => {
    for (let n = 0; n < 120; n++) response.setHeader(`x-field-${n}`, `${n}`);
    response.end("fields");
  },
  "/head": (request, response) => {
    response.setHeader("x-large", "y".repeat(24 * 1024));
    response.end("head");
  },
  "/lengths": (request) => {
    const head = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    request.socket.end(`${head}5\r\nhello\r\n0\r\n\r\n`);
  },
  "/coded": (request) => {
    const head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\nConnection: close\r\n\r\n";
    request.socket.end(`${head}5\r\nhello\r\n0\r\n\r\n`);
  },
  "/not-modified": (_, response) => {
    response.writeHead(304, { etag: '"a"', "content-length": 5 });
    response.end();
  },
};

const server = http.createServer({ maxHeaderSize: 128 * 1024, requestTimeout: 0 }, (request, response) => {
  const path = request.url.split("?")[0];
  (paths[path] ?? ((_, other) => other.end("ok")))(request, response);
});
server.on("checkContinue", (request, response) => {
  if (request.url.startsWith("/refuse")) return refuse(request, response);
  response.writeContinue();
  return echo(request, response);
});

/** An unmasked WebSocket frame (RFC 6455 section 5.2) with a payload of less than 126 bytes. */
const frame = (opcode, payload) => Buffer.concat([Buffer.from([0x80 | opcode, payload.length]), payload]);

server.on("upgrade", (request, socket, head) => {
  socket.on("error", () => {});
  if (request.headers.upgrade?.toLowerCase() !== "websocket") {
    socket.end("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n");
    return;
  }
  const accept = createHash("sha1").update(request.headers["sec-websocket-key"] + MASK).digest("base64");
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`);
  if (request.url.startsWith("/ws-reset")) {
    setTimeout(() => socket.resetAndDestroy(), 200);
    return;
  }
  let data = head;
  const read = (chunk) => {
    data = Buffer.concat([data, chunk]);
    while (data.length >= 6 && data.length >= 6 + (data[1] & 0x7f)) {
      const length = data[1] & 0x7f;
      const mask = data.subarray(2, 6);
      const payload = Buffer.from(data.subarray(6, 6 + length).map((byte, n) => byte ^ mask[n % 4]));
      const opcode = data[0] & 0x0f;
      data = data.subarray(6 + length);
      if (opcode === 8) socket.end(frame(8, payload));
      // Reply late, so that messages are in flight when a proxy gets the signal to stop.
      else setTimeout(() => socket.write(frame(opcode, payload)), 150);
    }
  };
  socket.on("data", read);
  read(Buffer.alloc(0));
});
server.listen(Number(process.argv[2]), "127.0.0.1", () => console.log("ready"));
