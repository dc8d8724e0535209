// Programs at either end of a connection to another port of the gateway. Each prints one JSON object a line.
//
//   node forward.mjs '{"ws": "<node_modules>", "role": "server", "port": 18793}'
//
// Roles: server     an HTTP and WebSocket server on 127.0.0.1. Its response, and its first message on a WebSocket, contain the
//                   client's address and the request's headers. It echoes later messages.
//        socket     opens `url`, sends "one" and "two", and prints the first message and the two echoes
//        extension  a fake of OpenClaw's browser extension: connects to the relay at `url`, and answers each command that
//                   the relay forwards
//        debugger   a client of the Chrome DevTools protocol: calls `methods` at `url`, and prints the answers
// Options of the last three: ca, a file with the CA to trust; headers, an object.
import fs from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";

const options = JSON.parse(process.argv[2]);
const WebSocket = createRequire(`${options.ws}/`)("ws");
const print = (value) => console.log(JSON.stringify(value));
const describe = (request) => ({ address: request.socket.remoteAddress, url: request.url, headers: request.headers });

function serve() {
  const server = http.createServer((request, response) => {
    let body = "";
    request.on("data", (part) => (body += part));
    request.on("end", () => response.end(JSON.stringify({ ...describe(request), body })));
  });
  new WebSocket.Server({ server }).on("connection", (socket, request) => {
    socket.send(JSON.stringify(describe(request)));
    socket.on("message", (message) => socket.send(String(message)));
  });
  server.listen(options.port, "127.0.0.1", () => print({ listening: options.port }));
}

function connect() {
  const socket = new WebSocket(options.url, { ca: fs.readFileSync(options.ca), headers: options.headers });
  const end = (value) => { print(value); process.exit(0); };
  socket.on("unexpected-response", (_request, response) => end({ refused: response.statusCode }));
  socket.on("error", (error) => end({ failed: error.message }));
  socket.on("close", (code) => end({ closed: code }));
  setTimeout(() => end({ failed: "no end" }), options.timeout ?? 30_000);
  return { socket, end };
}

const roles = {
  server: serve,
  socket() {
    const { socket, end } = connect();
    const messages = [];
    socket.on("message", (message) => {
      messages.push(String(message));
      if (messages.length === 1) for (const text of ["one", "two"]) socket.send(text);
      if (messages.length === 3) end({ greeting: JSON.parse(messages[0]), echoed: messages.slice(1) });
    });
  },
  extension() {
    const { socket } = connect();
    socket.on("open", () => print({ connected: true }));
    socket.on("message", (message) => {
      const { id, method, params } = JSON.parse(message);
      if (method === "ping") socket.send(JSON.stringify({ method: "pong" }));
      if (id !== undefined) socket.send(JSON.stringify({ id, result: { ran: params.method, with: params.params } }));
    });
  },
  debugger() {
    const { socket, end } = connect();
    const answers = {};
    socket.on("open", () => {
      options.methods.forEach((method, id) => socket.send(JSON.stringify({ id, method, params: { of: "the test" } })));
    });
    socket.on("message", (message) => {
      const { id, result } = JSON.parse(message);
      if (id !== undefined) answers[options.methods[id]] = result;
      if (Object.keys(answers).length === options.methods.length) end({ answers });
    });
  },
};
roles[options.role]();
