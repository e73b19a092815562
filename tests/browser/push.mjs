// Firefox, the app, and a stand-in for Mozilla's push service: its WebSocket to the browser, and its HTTPS side,
// to which mailchime sends.
import { createServer as http } from 'node:http';
import { createServer as https } from 'node:https';
import { randomBytes, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { check, file, firefox, hear, LOGIN, logIn, main, newPage, until, want, WebSocketServer } from './common.mjs';

const channels = new Set();
let socket = null;

const endpoints = https({ cert: readFileSync(file('server.pem')), key: readFileSync(file('server.key')) }, (request, answer) => {
  const chunks = [];
  request.on('data', chunk => chunks.push(chunk));
  request.on('end', () => {
    const channelID = request.url.slice('/push/'.length);
    if (request.method !== 'POST' || !channels.has(channelID)) { answer.writeHead(410).end(); return; }
    const headers = { encoding: request.headers['content-encoding'] };
    const data = Buffer.concat(chunks).toString('base64url');
    socket.send(JSON.stringify({ messageType: 'notification', channelID, version: randomUUID(), data, headers }));
    answer.writeHead(201, { location: `https://${host()}/message/1`, ttl: request.headers.ttl ?? '0' }).end();
  });
});
const host = () => `localhost:${endpoints.address().port}`;

const toBrowser = http();
new WebSocketServer({ server: toBrowser }).on('connection', connection => {
  socket = connection;
  connection.on('message', data => {
    const message = JSON.parse(data.toString());
    const say = answer => connection.send(JSON.stringify({ status: 200, messageType: message.messageType, ...answer }));
    const { channelID } = message;
    switch (message.messageType) {
      case undefined: connection.send('{}'); break;
      case 'hello': say({ uaid: message.uaid || randomBytes(16).toString('hex'), use_webpush: true, broadcasts: {} }); break;
      case 'register': channels.add(channelID); say({ channelID, pushEndpoint: `https://${host()}/push/${channelID}` }); break;
      case 'unregister': channels.delete(channelID); say({ channelID }); break;
      default:
    }
  });
});

const listening = server => new Promise(resolve => { server.listen(0, '127.0.0.1', resolve); });
const text = (page, selector) => page.$eval(selector, it => it.textContent);
const notifications = page => page.evaluate(async tag => {
  const registration = await navigator.serviceWorker.ready;
  const shown = await registration.getNotifications(tag ? { tag } : {});
  return shown.map(({ title, body, tag }) => ({ title, body, tag }));
}, `mail:${LOGIN}`);

/** With `[push] preview` a notification says who wrote about what, and how many more are new. */
async function showsWhoWroteWhat(page) {
  want('deliver');
  const shown = await until('the notification', async () => (await notifications(page))[0]);
  check(shown.title === '\u2068J\u00fcrgen M\u00fcller\u2069', JSON.stringify(shown));
  const lines = shown.body.split('\n');
  check(lines[0] === '\u2068Gr\u00fc\u00dfe\u2069', JSON.stringify(shown));
  check(lines.some(line => line.includes('INBOX')) && shown.body.includes(LOGIN), JSON.stringify(shown));

  want('deliver');
  await until('the second', async () => (await notifications(page))[0]?.body.includes('and 1 more new mail'));
}

main(async () => {
  await Promise.all([listening(endpoints), listening(toBrowser)]);
  want(host());
  const url = await hear();
  const browser = await firefox(`ws://127.0.0.1:${toBrowser.address().port}/`);
  try {
    const page = await newPage(browser);
    page.on('console', message => console.error('page:', message.text()));
    page.on('pageerror', error => console.error('page:', error.message));
    await page.goto(url);
    await logIn(page);
    await page.waitForSelector('#mailboxes li');
    await page.click('#notify-button');
    await until('the word that it works', async () => {
      check(await text(page, '#alert') === '', await text(page, '#alert'));
      return (await text(page, '#status')).startsWith('It works');
    });
    check(/this browser/.test(await text(page, '#subscriptions')), 'the list names this browser');
    check((await text(page, '#notify-state')) !== '', 'the page says that it is on');

    if (process.argv[2] === 'preview') { await showsWhoWroteWhat(page); return; }

    want('deliver');
    const shown = await until('the notification', async () => (await notifications(page))[0]);
    check(shown.title === 'New mail in \u2068INBOX\u2069', JSON.stringify(shown));
    check(shown.body.includes(LOGIN), JSON.stringify(shown));

    // Read elsewhere, it goes.
    want('read');
    await until('the end of the notification', async () => (await notifications(page)).length === 0);

    // A test comes as new mail does, and takes the place of what was shown before.
    await page.click('#subscriptions button');
    await until('the test', async () => (await notifications(page)).length === 1);

    // Removed, the browser is notified of nothing, and its subscription has ended at the push service.
    await page.click('#subscriptions button:last-of-type');
    await page.waitForSelector('#none:not([hidden])');
    await until('the end at the push service', () => channels.size === 0);
  } finally {
    await browser.close();
  }
});
