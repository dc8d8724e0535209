// Opens a WebSocket the way the Control UI does, and shows what the gateway was told of that.
const state = document.getElementById("websocket");
const form = document.getElementById("echo");
const log = document.getElementById("log");
const socket = new WebSocket(`wss://${location.host}/echo`);
let told;
socket.onmessage = ({ data }) => {
  if (!told) {
    told = JSON.parse(data);
    state.textContent = `Open. Seen from ${told.from} and judged ${told.judged}: ${told.because}.`;
    form.hidden = false;
    return;
  }
  const line = document.createElement("li");
  line.textContent = `came back: ${data}`;
  log.append(line);
};
socket.onclose = () => {
  state.textContent = told ? "Closed." : "It could not be opened.";
  form.hidden = true;
};
form.onsubmit = (event) => {
  event.preventDefault();
  socket.send(form.elements.text.value);
  form.reset();
};
