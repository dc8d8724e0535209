// Opens a WebSocket the way the Control UI does, and shows the request as the gateway received it.
const state = document.getElementById("websocket");
const form = document.getElementById("echo");
const log = document.getElementById("log");
const socket = new WebSocket(`wss://${location.host}/echo`);
let received;
socket.onmessage = ({ data }) => {
  if (!received) {
    received = JSON.parse(data);
    state.textContent = `Open. The gateway sees it from ${received.from}, class ${received.judged}: ${received.because}.`;
    form.hidden = false;
    return;
  }
  const line = document.createElement("li");
  line.textContent = `echoed: ${data}`;
  log.append(line);
};
socket.onclose = () => {
  state.textContent = received ? "Closed." : "It could not be opened.";
  form.hidden = true;
};
form.onsubmit = (event) => {
  event.preventDefault();
  socket.send(form.elements.text.value);
  form.reset();
};
