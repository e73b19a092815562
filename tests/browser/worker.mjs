// The service worker in Chromium: what its events do that no script can cause by itself, as a tap on a notification. They are
// dispatched in the worker, where `waitUntil` of such an event has to be replaced, and the opening of windows, too.
import { check, chromium, hear, LOGIN, logIn, MAC, main, newPage, until } from './common.mjs';

/**
 * In the worker: a notification with this data is tapped. Gives what was opened or focused, in order. Of a page of another
 * server openWindow gives null (Service Workers, `openWindow(url)`).
 */
async function tap(data, refused) {
  const told = [];
  Clients.prototype.openWindow = async url => {
    told.push(url);
    if (refused.includes(url)) throw new TypeError('not allowed');
    return new URL(url, location.href).origin === location.origin ? {} : null;
  };
  WindowClient.prototype.focus = async function focus() { told.push('focus'); return this; };
  await self.registration.showNotification('New mail', { tag: 'tapped', data });
  const [notification] = await self.registration.getNotifications({ tag: 'tapped' });
  const event = new NotificationEvent('notificationclick', { notification });
  let done = null;
  Object.defineProperty(event, 'waitUntil', { value: promise => { done = promise; } });
  self.dispatchEvent(event);
  await done;
  told.push((await self.registration.getNotifications({ tag: 'tapped' })).length);
  return told;
}

/** In the worker: a tap while the server does not answer. Gives what was opened, and how long the server was waited for. */
async function tapWithoutAnswer(data) {
  const [answering, limit] = [self.fetch, AbortSignal.timeout];
  let patience = null;
  AbortSignal.timeout = time => { patience = time; return limit.call(AbortSignal, time); };
  self.fetch = (path, { signal }) => new Promise((_, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason));
  });
  const told = await tap(data, []);
  [self.fetch, AbortSignal.timeout] = [answering, limit];
  return [...told, patience];
}

/** In the worker: the push service has another subscription for this browser. Gives what is remembered then. */
async function change(login, given) {
  await remember(login, { id: '0', mailboxes: ['Lists'], endpoint: 'https://old.example/' });
  const event = new ExtendableEvent('pushsubscriptionchange');
  let done = null;
  Object.defineProperty(event, 'waitUntil', { value: promise => { done = promise; } });
  Object.defineProperty(event, 'newSubscription', { value: { endpoint: given.endpoint, toJSON: () => given } });
  self.dispatchEvent(event);
  await done;
  return (await remembered())[login];
}

/** In the worker: these pushes come, `together` or each behind the one before. Gives the notification of the account. */
async function push(account, together, messages) {
  const dispatched = message => {
    const event = new PushEvent('push', {
      data: JSON.stringify({ type: 'mailbox.changed', data: { account, ...message } }),
    });
    let done = null;
    Object.defineProperty(event, 'waitUntil', { value: promise => { done = promise; } });
    self.dispatchEvent(event);
    return done;
  };
  if (together) await Promise.all(messages.map(dispatched));
  else for (const message of messages) await dispatched(message);
  const shown = await self.registration.getNotifications({ tag: `mail:${account}` });
  for (const it of shown) it.close();
  return shown.map(it => `${it.title} | ${it.body.replaceAll(/[\u2068\u2069]/g, '').replaceAll('\n', ' | ')}`
    .replaceAll(/[\u2068\u2069]/g, ''));
}

/** In the worker: this push comes while a code cannot be given back, since the API does not answer. */
async function pushWhileConfirming(account, message) {
  const answering = self.fetch;
  self.fetch = (path, options) => (String(path).startsWith('/v1/') ? new Promise(() => {}) : answering(path, options));
  const data = JSON.stringify({ type: 'subscription.verify', data: { code: '1' } });
  const event = new PushEvent('push', { data });
  Object.defineProperty(event, 'waitUntil', { value: () => {} });
  self.dispatchEvent(event);
  const shown = await self.push(account, false, [message]);
  self.fetch = answering;
  return shown;
}

/** What notifications say of mails that come, and are read elsewhere. */
async function says(worker) {
  const pushed = (together, ...messages) => worker.evaluate(push, LOGIN, together, messages);
  const inbox = (kind, more = {}) => ({ mailboxes: [{ mailbox: 'INBOX', kind, ...more }] });
  const lists = (kind, more = {}) => ({ mailboxes: [{ mailbox: 'Lists', kind, ...more }] });

  // Those that come together.
  const both = [inbox('new', { unseen: 1 }), lists('new', { unseen: 1 })];
  expect(await pushed(true, ...both), [`New mail in Lists and 1 other mailbox | Lists: 1 unread | INBOX: 1 unread | ${LOGIN}`]);
  expect(await pushed(true, inbox('new', { unseen: 1 }), inbox('quiet', { unseen: 0 })), []);

  // Five were unread before. The new one is read elsewhere.
  expect(await pushed(false, inbox('new', { unseen_before: 5 })), [`New mail in INBOX | ${LOGIN}`]);
  expect(await pushed(false, inbox('new', { unseen_before: 5 }), inbox('quiet', { unseen: 5 })), []);
  expect(await pushed(false, inbox('new', { unseen: 6, unseen_before: 5 }), inbox('quiet', { unseen: 6 })),
    [`New mail in INBOX | INBOX: 6 unread | ${LOGIN}`]);
  // One more comes, and one of the two is read.
  const two = [inbox('new', { unseen: 6, unseen_before: 5 }), inbox('new', { unseen: 7, unseen_before: 6 })];
  expect(await pushed(false, ...two, inbox('quiet', { unseen: 6 })), [`New mail in INBOX | INBOX: 6 unread | ${LOGIN}`]);
  expect(await pushed(false, ...two, inbox('quiet', { unseen: 5 })), []);
  // All are read before the second comes, or it is not known how many were.
  for (const more of [{ unseen: 1, unseen_before: 0 }, { unseen: 1 }]) {
    const later = [inbox('new', { unseen: 6, unseen_before: 5 }), inbox('new', more)];
    expect(await pushed(false, ...later, inbox('quiet', { unseen: 1 })), [`New mail in INBOX | INBOX: 1 unread | ${LOGIN}`]);
    expect(await pushed(false, ...later, inbox('quiet', { unseen: 0 })), []);
  }
  expect(await pushed(false, inbox('new'), inbox('quiet', { unseen: 0 })), []);
  // The five were read just before, and that was not known.
  expect(await pushed(false, inbox('new', { unseen: 1, unseen_before: 5 }), inbox('quiet', { unseen: 1 })),
    [`New mail in INBOX | INBOX: 1 unread | ${LOGIN}`]);
  expect(await worker.evaluate(pushWhileConfirming, LOGIN, inbox('new')), [`New mail in INBOX | ${LOGIN}`]);

  // Of three previewed mails two are read.
  const preview = { mailbox: 'INBOX', sender: 'Ann', subject: 'Hi', messages: 3 };
  expect(await pushed(false, { ...inbox('new', { unseen: 3 }), preview }, inbox('quiet', { unseen: 1 })),
    [`Ann | Hi | INBOX: 1 unread | ${LOGIN}`]);
  const older = { ...inbox('new', { unseen: 8, unseen_before: 5 }), preview };
  expect(await pushed(false, older, inbox('quiet', { unseen: 6 })), [`Ann | Hi | INBOX: 6 unread | ${LOGIN}`]);
  // The mailbox of the newest mail is named, whatever is known of the others.
  expect(await pushed(false, lists('new', { unseen: 3 }), { ...inbox('new'), preview: { ...preview, messages: 1 } }),
    [`Ann | Hi | New mail in INBOX and 1 other mailbox | Lists: 3 unread | ${LOGIN}`]);
}

/** The page and its worker, in a browser of its own, where a function of this file can be called by its name. */
async function open(browser, url, before = async () => {}) {
  const context = await browser.createBrowserContext();
  await context.overridePermissions(url, ['notifications']);
  const page = await newPage(context);
  await before(page);
  await page.goto(url);
  await page.waitForSelector('#log-in:not([hidden])');
  await page.evaluate(() => navigator.serviceWorker.ready.then(() => undefined));
  const target = await context.waitForTarget(it => it.type() === 'service_worker');
  const worker = await target.worker();
  await worker.evaluate(`self.tap = ${tap}; self.push = ${push};`);
  return { context, page, worker };
}

function expect(told, expected) {
  check(JSON.stringify(told) === JSON.stringify(expected), `${JSON.stringify(told)} is not ${JSON.stringify(expected)}`);
}

/** Without a link of the operator, a tap opens the mail program on Apple's devices: by a page that is there or a new one. */
async function opensTheMailProgram(browser, url) {
  let asked = [];
  const { context, page, worker } = await open(browser, url, async page => {
    await page.setUserAgent({ userAgent: MAC });
    const session = await page.createCDPSession();
    await session.send('Page.enable');
    session.on('Page.frameRequestedNavigation', it => asked.push(it.url));
  });
  const opens = async how => {
    await until(`the mail program, ${how}`, () => asked.includes('message:'));
    asked = [];
    await until(`an address without a tap, ${how}`, () => page.evaluate(() => location.href === `${location.origin}/`));
  };
  await worker.evaluate(mac => { Object.defineProperty(WorkerNavigator.prototype, 'userAgent', { get: () => mac }); }, MAC);

  expect(await worker.evaluate(tap, { account: LOGIN }, []), ['focus', 0]);
  await opens('by the page that is open');
  // As browsers do that open a window in the one that is there.
  await page.evaluate(() => { location.hash = '#mail'; });
  await opens('by the address of the page that is open');

  await page.goto('about:blank');
  expect(await worker.evaluate(tap, { account: LOGIN }, []), ['/#mail', 0]);
  await page.goto(`${url}/#mail`);
  await opens('by a new page');
  await page.reload();
  await page.waitForSelector('#log-in:not([hidden])');
  expect(asked.filter(it => it === 'message:'), []);
  await context.close();
}

main(async () => {
  const [url, link, given, plainUrl] = [await hear(), await hear(), JSON.parse(await hear()), await hear()];
  const browser = await chromium();
  try {
    const { page, worker } = await open(browser, url);
    await logIn(page);

    await says(worker);

    // A tap leads to the configured link, also where the server does not answer: Firefox opens nothing a second later.
    const data = { account: LOGIN };
    expect(await worker.evaluate(tap, data, []), [link, 0]);
    const [opened, left, patience] = await worker.evaluate(tapWithoutAnswer, data);
    expect([opened, left], [link, 0]);
    check(patience < 1000, `it waits for the server for ${patience} ms`);
    // What is about the page leads to the page that is open.
    expect(await worker.evaluate(tap, { page: true }, []), ['focus', 0]);

    // Another endpoint for this browser becomes a subscription for the same mailboxes.
    const kept = await worker.evaluate(change, LOGIN, given);
    check(kept?.endpoint === given.endpoint && kept.mailboxes.join() === 'Lists', JSON.stringify(kept));
    const { subscriptions } = await page.evaluate(async () => (await fetch('/v1/subscriptions')).json());
    const made = subscriptions.find(it => it.id === kept.id);
    check(kept.former.join() === '0', `the one before is to be removed: ${JSON.stringify(kept)}`);
    check(made?.transport === 'webpush' && made.mailboxes.join() === 'Lists', JSON.stringify(subscriptions));

    // Where the browser opens no such link, the page does.
    const leaves = page.waitForRequest(link);
    expect(await worker.evaluate(tap, data, [link]), [link, 'focus', 0]);
    await leaves;

    await opensTheMailProgram(browser, plainUrl);
  } finally {
    await browser.close();
  }
});
