// The service worker in Chromium: what its events do that no script can cause by itself, as a tap on a notification. They are
// dispatched in the worker, where `waitUntil` of such an event has to be replaced, and the opening of windows, too.
import { check, chromium, hear, LOGIN, logIn, main, newPage } from './common.mjs';

/** In the worker: a notification with this data is tapped. Gives what was opened or focused, in order. */
async function tap(data, refused) {
  const told = [];
  Clients.prototype.openWindow = async url => {
    told.push(url);
    if (refused.includes(url)) throw new TypeError('not allowed');
    return {};
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

main(async () => {
  const [url, link, given] = [await hear(), await hear(), JSON.parse(await hear())];
  const browser = await chromium();
  try {
    const context = await browser.createBrowserContext();
    await context.overridePermissions(url, ['notifications']);
    const page = await newPage(context);
    await page.goto(url);
    await logIn(page);
    await page.evaluate(() => navigator.serviceWorker.ready.then(() => undefined));
    const target = await context.waitForTarget(it => it.type() === 'service_worker');
    const worker = await target.worker();
    const tapped = async (data, refused, expected) => {
      const told = await worker.evaluate(tap, data, refused);
      check(JSON.stringify(told) === JSON.stringify([...expected, 0]), `${JSON.stringify(data)}: ${told}`);
    };

    // A tap leads to the configured link, and where the browser opens no such link, to the page that has it.
    await tapped({ account: LOGIN }, [], [link]);
    await tapped({ account: LOGIN }, [link], [link, '/#mail']);
    // What is about the page leads to the page that is open.
    await tapped({ page: true }, [], ['focus']);

    // Another endpoint for this browser becomes a subscription for the same mailboxes.
    const kept = await worker.evaluate(change, LOGIN, given);
    check(kept?.endpoint === given.endpoint && kept.mailboxes.join() === 'Lists', JSON.stringify(kept));
    const { subscriptions } = await page.evaluate(async () => (await fetch('/v1/subscriptions')).json());
    const made = subscriptions.find(it => it.id === kept.id);
    check(kept.former.join() === '0', `the one before is to be removed: ${JSON.stringify(kept)}`);
    check(made?.transport === 'webpush' && made.mailboxes.join() === 'Lists', JSON.stringify(subscriptions));
  } finally {
    await browser.close();
  }
});
