// Takes pictures of dashboards: node draw.mjs < order.json, where the order is
//   {prometheus, folder, chromium, logs: {job: [file]}, shots: [{out, dashboard, width, query: {...}}]}
// Prints a line of JSON for each picture: what stands in it, and which texts are cut.
import fs from 'node:fs';
import http from 'node:http';
import os from 'node:os';
import path from 'node:path';
import puppeteer from 'puppeteer-core';

const order = JSON.parse(fs.readFileSync(0, 'utf8'));
const here = path.dirname(new URL(import.meta.url).pathname);
const FONTS = '/usr/share/fonts/opentype/inter/';
const svg = (inside) => `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24">${inside}</svg>`;
const icons = {
  'info-circle': svg('<path d="M12 2a10 10 0 1 0 0 20 10 10 0 0 0 0-20zm0 18a8 8 0 1 1 0-16 8 8 0 0 1 0 16zm-1-9h2v6h-2zm0-4h2v2h-2z"/>'),
  'arrow-up': svg('<path d="M12 5l6 7h-5v7h-2v-7H6z"/>'),
  'arrow-down': svg('<path d="M12 19l-6-7h5V5h2v7h5z"/>'),
};
const page = '<!doctype html><meta charset=utf-8><link rel=stylesheet href=/main.css><div id=root></div><script src=/main.js></script>';

async function ask(request, url) {
  const chunks = [];
  for await (const chunk of request) {
    chunks.push(chunk);
  }
  const answer = await fetch(order.prometheus + url.pathname.slice(5), {
    method: 'POST',
    body: Buffer.concat(chunks),
    headers: { 'content-type': 'application/x-www-form-urlencoded' },
  });
  return Buffer.from(await answer.arrayBuffer());
}

/** The log lines of a job's instances: a stand-in for Loki. */
function logs(job) {
  const lines = [];
  for (const file of order.logs[job] ?? []) {
    for (const line of fs.readFileSync(file, 'utf8').split('\n')) {
      if (line.startsWith('{')) {
        lines.push(JSON.parse(line));
      }
    }
  }
  return JSON.stringify(lines);
}

async function answer(request, url) {
  const name = path.basename(url.pathname);
  if (url.pathname.startsWith('/prom/')) {
    return ['application/json', await ask(request, url)];
  }
  if (url.pathname === '/logs') {
    return ['application/json', logs(url.searchParams.get('job'))];
  }
  if (url.pathname.startsWith('/dashboard/')) {
    return ['application/json', fs.readFileSync(path.join(order.folder, name + '.json'))];
  }
  if (name.endsWith('.svg')) {
    return ['image/svg+xml', icons[path.basename(name, '.svg')] ?? svg('')];
  }
  if (url.pathname.startsWith('/public/fonts/inter/')) {
    return ['font/otf', fs.readFileSync(FONTS + path.basename(name, '.woff2') + '.otf')];
  }
  if (name === 'main.js' || name === 'main.css') {
    return [name.endsWith('js') ? 'text/javascript' : 'text/css', fs.readFileSync(path.join(here, 'dist', name))];
  }
  return ['text/html', page];
}

const server = http.createServer(async (request, response) => {
  try {
    const [type, body] = await answer(request, new URL(request.url, 'http://here'));
    response.writeHead(200, { 'content-type': type }).end(body);
  } catch (error) {
    response.writeHead(500).end(String(error));
  }
});
await new Promise((ready) => server.listen(0, '127.0.0.1', ready));

const profile = fs.mkdtempSync(path.join(os.tmpdir(), 'genesis-chromium-'));
const browser = await puppeteer.launch({
  executablePath: order.chromium,
  headless: true,
  userDataDir: profile,
  args: ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--font-render-hinting=none'],
});
try {
  for (const shot of order.shots) {
    const errors = [];
    const tab = await browser.newPage();
    tab.on('pageerror', (error) => errors.push(String(error.stack).slice(0, 500)));
    tab.on('console', (message) => message.type() === 'error' && errors.push(message.text().slice(0, 300)));
    await tab.setViewport({ width: shot.width, height: 2700 });
    const query = new URLSearchParams({ dashboard: shot.dashboard, ...shot.query });
    await tab.goto(`http://127.0.0.1:${server.address().port}/?${query}`);
    await tab.waitForFunction('window.__ready === true', { timeout: 60000 });
    await tab.waitForFunction('window.__tables()', { timeout: 20000 }); // they draw themselves later than the others
    const { height, ...seen } = await tab.evaluate('window.__seen()');
    if (shot.out) {
      await tab.screenshot({ path: shot.out, clip: { x: 0, y: 0, width: shot.width, height } });
    }
    await tab.close();
    console.log(JSON.stringify({ ...seen, errors }));
  }
} finally {
  await browser.close();
  server.close();
  fs.rmSync(profile, { recursive: true, force: true });
}
