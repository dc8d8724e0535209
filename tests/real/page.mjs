// Opens the admin page in Chromium with each color scheme in a wide and a narrow window. Prints one line of JSON for each.
//
//   node page.mjs '{"modules", "url", "screenshots"}'
import { createRequire } from "node:module";

const options = JSON.parse(process.argv[2]);
const { chromium } = createRequire(`${options.modules}/`)("playwright-core");
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", headless: true, args: ["--no-sandbox", "--disable-gpu"] });
for (const colorScheme of ["light", "dark"]) {
  for (const width of [1280, 400]) {
    // The page must work without scripts.
    const context = await browser.newContext({ colorScheme, viewport: { width, height: 900 }, javaScriptEnabled: false });
    const page = await context.newPage();
    const complaints = [];
    page.on("console", (message) => complaints.push(message.text()));
    page.on("requestfailed", (request) => complaints.push(request.url()));
    const requests = [];
    page.on("request", (request) => requests.push(new URL(request.url()).pathname));
    await page.goto(options.url);
    await page.screenshot({ path: `${options.screenshots}-${colorScheme}-${width}.png`, fullPage: true });
    const seen = await page.evaluate(() => ({
      background: getComputedStyle(document.body).backgroundColor,
      overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
      text: document.body.innerText,
    }));
    console.log(JSON.stringify({ colorScheme, width, complaints, requests, ...seen }));
    await context.close();
  }
}
await browser.close();
