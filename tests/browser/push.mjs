// Firefox and the app: the test says which profile, where the app is, and who logs in there.
import { check, firefox, hear, logIn, main, newPage, until, want } from './common.mjs';

const text = (page, selector) => page.$eval(selector, it => it.textContent);
const notifications = (page, login) => page.evaluate(async tag => {
  const registration = await navigator.serviceWorker.ready;
  const shown = await registration.getNotifications(tag ? { tag } : {});
  return shown.map(({ title, body, tag }) => ({ title, body, tag }));
}, `mail:${login}`);

/** What the list says of this browser, without its buttons. */
const ownRow = page => page.$$eval('#subscriptions li', rows => {
  const own = rows.find(row => row.textContent.includes('(this browser)'));
  return [...own.querySelectorAll('p')].map(it => it.textContent).join(' ');
});

/** Where there is another mailbox than INBOX, it is chosen, and is in the list then. */
async function choosesAnother(page) {
  const label = await page.$$('#mailboxes label:not(:has([type=checkbox]:checked))').then(all => all[0]);
  if (!label) return;
  const name = await label.evaluate(it => it.textContent);
  await label.click();
  await page.click('#notify-button');
  await until('the word that it is saved', async () => await text(page, '#status') === 'Saved.');
  check((await ownRow(page)).includes(`INBOX, ${name}`), await ownRow(page));
}

/** With `[push] preview` a notification says who wrote about what, and how many more are new. */
async function showsWhoWroteWhat(page, login) {
  want('deliver');
  const shown = await until('the notification', async () => (await notifications(page, login))[0]);
  check(shown.title === '\u2068J\u00fcrgen M\u00fcller\u2069', JSON.stringify(shown));
  const lines = shown.body.split('\n');
  check(lines[0] === '\u2068Gr\u00fc\u00dfe\u2069', JSON.stringify(shown));
  check(lines.some(line => line.includes('INBOX')) && shown.body.includes(login), JSON.stringify(shown));

  want('deliver');
  await until('the second', async () => (await notifications(page, login))[0]?.body.includes('and 1 more new mail'));
  check((await notifications(page, login)).length === 1, 'it does not replace the first');
}

main(async () => {
  const [profile, url, login, password] = [await hear(), await hear(), await hear(), await hear()];
  const browser = await firefox(profile);
  try {
    const page = await newPage(browser);
    page.on('console', message => console.error('page:', message.text()));
    page.on('pageerror', error => console.error('page:', error.message));
    await page.goto(url);
    await logIn(page, login, password);
    await page.waitForSelector('#mailboxes li');
    await page.click('#notify-button');
    await until('the word that it works', async () => {
      check(await text(page, '#alert') === '', await text(page, '#alert'));
      return (await text(page, '#status')).startsWith('It works');
    });
    check(/this browser/.test(await text(page, '#subscriptions')), 'the list names this browser');
    check((await text(page, '#notify-state')) !== '', 'the page says that it is on');

    check(/ · no push yet$/.test(await ownRow(page)), await ownRow(page));
    await choosesAnother(page);

    if (process.argv[2] === 'preview') { await showsWhoWroteWhat(page, login); return; }

    want('deliver');
    const shown = await until('the notification', async () => (await notifications(page, login))[0]);
    check(shown.title === 'New mail in \u2068INBOX\u2069', JSON.stringify(shown));
    check(shown.body.includes(login), JSON.stringify(shown));
    await until('the last push in the list', async () => / · last push /.test(await ownRow(page)));

    // Read elsewhere, it goes.
    want('read');
    if (await hear() === 'stop') return;
    await until('the end of the notification', async () => (await notifications(page, login)).length === 0);

    // New mail in two mailboxes is one notification that names both.
    want('deliver to both');
    const both = await until('the notification of both', async () => {
      const all = await notifications(page, login);
      return all.find(it => it.title.includes('other mailbox')) && all;
    });
    check(both.length === 1, JSON.stringify(both));
    check(/^New mail in \u2068(INBOX|Lists)\u2069 and 1 other mailbox$/.test(both[0].title), JSON.stringify(both));
    check(both[0].body.includes(login), JSON.stringify(both));
    await page.evaluate(async tag => {
      const registration = await navigator.serviceWorker.ready;
      for (const it of await registration.getNotifications({ tag })) it.close();
    }, `mail:${login}`);
    await until('the end of that of both', async () => (await notifications(page, login)).length === 0);

    // A test comes as new mail does, and takes the place of what was shown before.
    await page.click('#subscriptions button');
    await until('the test', async () => (await notifications(page, login)).length === 1);

    // Removed elsewhere, it stays removed until its user wants it back.
    await page.evaluate(async () => {
      const { subscriptions } = await (await fetch('/v1/subscriptions')).json();
      for (const { id } of subscriptions) await fetch(`/v1/subscriptions/${id}`, { method: 'DELETE' });
    });
    await page.reload();
    await until('the word that it was removed', async () => (await text(page, '#status')).includes('was removed'));
    check(await page.$eval('#none', it => !it.hidden), 'it was made anew');
    await page.click('#notify-button');
    await until('the word that it works again', async () => (await text(page, '#status')).startsWith('It works'));

    // Made with another key than the server has, as after its key file was lost, it is made anew, and the former one goes.
    await page.evaluate(async login => {
      const manager = (await navigator.serviceWorker.ready).pushManager;
      await (await manager.getSubscription()).unsubscribe();
      const { publicKey } = await crypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, false, ['sign']);
      const applicationServerKey = await crypto.subtle.exportKey('raw', publicKey);
      const { endpoint } = await manager.subscribe({ userVisibleOnly: true, applicationServerKey });
      await remember(login, { ...(await remembered())[login], endpoint });
    }, login);
    await page.reload();
    await until('the word that it works with this key', async () => (await text(page, '#status')).startsWith('It works'));
    await until('the end of the former one', () => page.evaluate(async () => {
      const { subscriptions } = await (await fetch('/v1/subscriptions')).json();
      return subscriptions.length === 1;
    }));
    await until('the list without it', async () => (await page.$$('#subscriptions > li')).length === 1);

    // The page closes before the first push to another endpoint has come: the former one goes when the page opens again.
    await page.evaluate(async () => {
      const manager = (await navigator.serviceWorker.ready).pushManager;
      await (await manager.getSubscription()).unsubscribe();
      await makeSubscription(await subscribed(manager, false), ['INBOX']);
    });
    const all = () => page.evaluate(async () => (await (await fetch('/v1/subscriptions')).json()).subscriptions);
    await until('two that count', async () => (await all()).filter(it => it.state === 'active').length === 2);
    await page.reload();
    await until('the end of the one before it', async () => (await all()).length === 1);
    await until('the list without the one before it', async () => (await page.$$('#subscriptions > li')).length === 1);

    // Removed before its first push has come, it takes the former one along: by the page, and where it is removed elsewhere.
    const former = async () => page.evaluate(async () => {
      const manager = (await navigator.serviceWorker.ready).pushManager;
      await (await manager.getSubscription()).unsubscribe();
      await makeSubscription(await subscribed(manager, false), ['INBOX']);
      await showSubscriptions();
      return (await remembered())[account].former.length;
    });
    check(await former() === 1, 'the former one is remembered');
    await page.evaluate(() => removeSubscription(own));
    check((await all()).length === 0, `the former one is there: ${JSON.stringify(await all())}`);
    await page.waitForSelector('#none:not([hidden])');
    await page.click('#notify-button');
    await until('the word that it works once more', async () => (await text(page, '#status')).startsWith('It works'));
    check(await former() === 1, 'the former one is remembered');
    await page.evaluate(() => fetch(`/v1/subscriptions/${own.id}`, { method: 'DELETE' }));
    await page.reload();
    await until('the word that it was removed, too', async () => (await text(page, '#status')).includes('was removed'));
    check((await all()).length === 0, `the former one is there: ${JSON.stringify(await all())}`);
    await page.click('#notify-button');
    await until('the word that it works at last', async () => (await text(page, '#status')).startsWith('It works'));

    // Removed, the browser is notified of nothing, and its subscription has ended at the push service.
    await page.click('#subscriptions button:last-of-type');
    await page.waitForSelector('#none:not([hidden])');
    want('end');
    await hear();
  } finally {
    await browser.close();
  }
});
