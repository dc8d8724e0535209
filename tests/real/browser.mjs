// Opens the Control UI in Chromium and waits until its device is approved. Prints one line of JSON for each event:
//   {saw: "page", protocol}          the page has loaded, over h2 or http/1.1
//   {saw: "pairing", request}        the gateway requires an approval; the script continues after a line on standard input
//   {saw: "hello", scopes}           the page is connected
//   {saw: "nothing", ...}            an expected event did not happen
//
//   node browser.mjs '{"modules", "url", "profile", "netlog", "screenshots", "arguments": []}'
import { createRequire } from "node:module";
import readline from "node:readline";

const options = JSON.parse(process.argv[2]);
const { chromium } = createRequire(`${options.modules}/`)("playwright-core");
const saw = (what, more) => console.log(JSON.stringify({ saw: what, ...more }));

const context = await chromium.launchPersistentContext(options.profile, {
  executablePath: "/usr/bin/chromium",
  headless: true,
  env: process.env,
  viewport: { width: 1280, height: 800 },
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", `--log-net-log=${options.netlog}`, ...options.arguments,
  ],
});
const page = context.pages()[0];

// Reads the gateway's messages to the page. They contain the request id and the scopes, and differ less between versions
// than the text of the page.
const received = { pairing: Promise.withResolvers(), hello: Promise.withResolvers() };
page.on("websocket", (socket) => {
  socket.on("framereceived", ({ payload }) => {
    let frame;
    try {
      frame = JSON.parse(payload);
    } catch {
      return;
    }
    if (frame.type !== "res") return;
    if (frame.payload?.type === "hello-ok") received.hello.resolve(frame.payload.auth?.scopes ?? []);
    if (frame.error?.code === "NOT_PAIRED") received.pairing.resolve(frame.error.details.requestId);
  });
});
const within = (seconds, promise) => Promise.race([promise, new Promise((resolve) => setTimeout(resolve, seconds * 1000, null))]);
const shot = (name) => page.screenshot({ path: `${options.screenshots}-${name}.png` });

try {
  await page.goto(options.url, { waitUntil: "load" });
  saw("page", { protocol: await page.evaluate(() => performance.getEntriesByType("navigation")[0].nextHopProtocol) });
  const request = await within(60, received.pairing.promise);
  if (!request) throw new Error("no request for an approval");
  await page.waitForTimeout(1500);
  await shot("pairing");
  saw("pairing", { request });
  await new Promise((resolve) => readline.createInterface({ input: process.stdin }).once("line", resolve));
  // The newer version connects by itself; the older one may need a reload.
  let scopes = await within(15, received.hello.promise);
  if (!scopes) {
    await page.reload();
    scopes = await within(45, received.hello.promise);
  }
  if (!scopes) throw new Error("not connected after the approval");
  await page.waitForTimeout(1500);
  await shot("connected");
  saw("hello", { scopes });
} catch (error) {
  await shot("failed").catch(() => {});
  saw("nothing", { error: String(error), text: await page.innerText("body").catch(() => "") });
} finally {
  await context.close();
}
process.exit(0);
