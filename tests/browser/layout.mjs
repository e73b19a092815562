// The page in Chromium: at three widths, light and dark, in two languages, without a scroll bar to the side, by
// axe-core's rules, and by keyboard, in each of its states; and what lets it be installed. SCREENSHOTS names a folder for the pictures of the docs (docs/images/make.sh).
import { check, chromium, fitsWidths, hear, LOGIN, logIn, MAC, main, newPage, PASSWORD, readyForAxe, screenshot, until } from './common.mjs';

const PICTURES = ['account-1280-light', 'account-1280-dark', 'account-768-light', 'account-360-light', 'account-360-dark', 'iphone-360-dark'];
const IPHONE = 'Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) '
  + 'Version/18.0 Mobile/15E148 Safari/604.1';

/** Names that the test has chosen to do harm are in no picture. */
const showOddNames = (page, shown) => page.$$eval('#mailboxes li', (rows, shown) => {
  for (const row of rows) row.hidden = !shown && /longlong|<b>/.test(row.textContent);
}, shown);

const fits = (page, name) => fitsWidths(page, name, async picture => {
  if (!PICTURES.includes(picture)) return;
  await showOddNames(page, false);
  await screenshot(page, `web-app-${picture}`);
  await showOddNames(page, true);
});

/** A page of the app in a browser that prefers this language; axe-core reads it through the debugger. */
async function open(browser, url, languages, before = async () => {}) {
  const context = await browser.createBrowserContext();
  const page = await newPage(context);
  const problems = [];
  page.on('pageerror', error => problems.push(error.message));
  page.on('console', message => {
    // That nobody is logged in yet is an answer of 401, which Chromium calls an error.
    if (message.type() === 'error' && !/401/.test(message.text())) problems.push(message.text());
  });
  await page.evaluateOnNewDocument(list => {
    Object.defineProperty(Navigator.prototype, 'languages', { get: () => list });
    Object.defineProperty(Navigator.prototype, 'language', { get: () => list[0] });
  }, languages);
  await page.setExtraHTTPHeaders({ 'accept-language': languages.join(',') });
  await before(page);
  await page.goto(url);
  await readyForAxe(page);
  return { context, page, problems };
}

const text = (page, selector) => page.$eval(selector, it => it.textContent);

/** Tab reaches each thing that can be done, in the order of the page, and shows where it is. */
async function reachable(page, name) {
  const all = await page.evaluate(() => {
    const able = [...document.querySelectorAll('a[href], button, input, summary')].filter(it => it.checkVisibility());
    able.forEach((it, number) => { it.dataset.number = number; });
    document.querySelector('h1').tabIndex = -1;
    document.querySelector('h1').focus();
    return able.map(it => it.id || it.textContent);
  });
  for (const [number, what] of all.entries()) {
    await page.keyboard.press('Tab');
    const [reached, style] = await page.evaluate(() => {
      const it = document.activeElement;
      return [it.dataset.number, getComputedStyle(it).outlineStyle];
    });
    check(reached === String(number), `${name}: Tab ${number} does not reach ${what}`);
    check(style === 'solid', `${name}: ${what} does not show that it has the focus`);
  }
  check(all.length > 0, `${name}: nothing can be done`);
}

/**
 * What Chromium has against installing the app. It installs none from a window without a memory, which all others of this
 * test are, so this one is of the browser itself.
 */
async function canBeInstalled(browser, url) {
  const page = await newPage(browser.defaultBrowserContext());
  await page.goto(url);
  await page.evaluate(() => navigator.serviceWorker.ready.then(() => undefined));
  const session = await page.createCDPSession();
  const { errors, url: manifest } = await session.send('Page.getAppManifest');
  check(manifest === `${url}/manifest.webmanifest` && errors.length === 0, JSON.stringify(errors));
  const errorsOf = async () => (await session.send('Page.getInstallabilityErrors')).installabilityErrors;
  check((await errorsOf()).length === 0, JSON.stringify(await errorsOf()));
  // What is no manifest is found, once the browser's own process has heard of it from that of the page.
  await page.$eval('link[rel=manifest]', it => { it.href = '/settings.json'; });
  await until('what Chromium has against a file that is no manifest', async () => (await errorsOf()).length > 0);
  await page.close();
}

/** Without a network the service worker has a page, which says so and leads back. */
async function worksOffline(context, page, url) {
  const worker = await context.waitForTarget(it => it.type() === 'service_worker');
  const session = await worker.createCDPSession();
  await session.send('Network.enable');
  const network = offline => session.send('Network.emulateNetworkConditions', {
    offline, latency: 0, downloadThroughput: -1, uploadThroughput: -1,
  });
  await network(true);
  await page.goto(url);
  check(/cannot be reached/.test(await text(page, 'main')), await text(page, 'main'));
  await readyForAxe(page);
  await fits(page, 'offline');
  await reachable(page, 'offline');
  await network(false);
  await Promise.all([page.waitForNavigation(), page.keyboard.press('Enter')]);
  await page.waitForSelector('#log-in:not([hidden])');
}

/** A browser without scripts says what is missing, in the language of its user. Nor does axe-core run there. */
async function saysThatItNeedsScripts(browser, url) {
  const { context, page } = await open(browser, url, ['de', 'en'], page => page.setJavaScriptEnabled(false));
  const said = await page.$eval('main', it => it.innerText);
  check(/^mailchime braucht JavaScript\./.test(said.trim()), said);
  await context.close();
}

main(async () => {
  const url = await hear();
  const browser = await chromium();
  try {
    const { context, page, problems } = await open(browser, url, ['en-GB']);
    await context.overridePermissions(url, ['notifications']);
    await page.waitForSelector('#log-in:not([hidden])');
    await fits(page, 'log-in');
    await reachable(page, 'log-in');

    // By keyboard alone: a wrong password says so and leaves the focus in the field, the right one goes on.
    await page.focus('#login');
    await page.keyboard.type(LOGIN);
    await page.keyboard.press('Tab');
    await page.keyboard.type('wrong');
    await page.keyboard.press('Enter');
    await until('what is wrong', () => text(page, '#alert'));
    check(await page.evaluate(() => document.activeElement.id) === 'password', 'the focus is lost');
    await fits(page, 'error');
    await page.keyboard.type(PASSWORD);
    await page.keyboard.press('Enter');
    await page.waitForSelector('#mailboxes li');
    await until('the focus', () => page.evaluate(() => document.activeElement.id === 'notify-title'));
    check(await text(page, '#alert') === '', 'the error is still there');
    check(await text(page, '#account') === LOGIN, 'the account');
    await fits(page, 'account');
    await reachable(page, 'account');
    const chosen = () => page.$$eval('#mailboxes input:checked', all => all.map(it => it.mailbox).join());
    await page.focus('#mailboxes input');
    await page.keyboard.press('Space');
    check(await chosen() === '', await chosen());
    await page.keyboard.press('Enter');
    await until('what is missing', async () => await text(page, '#alert') === 'Choose at least one mailbox.');
    await page.keyboard.press('Space');
    check(await chosen() === 'INBOX', await chosen());

    const names = await page.$$eval('#mailboxes bdi', all => all.map(it => it.textContent));
    check(names[0] === 'INBOX', 'INBOX is the first');
    check(names.includes('xgpj.exe <b>'), `hostile names are text without controls: ${names.join('|')}`);
    check(names.every(name => name.length <= 60), 'a long name is shortened');
    const rows = await page.$$eval('#subscriptions li', all => all.map(it => it.textContent));
    check(rows.length === 1 && /Apple Mail/.test(rows[0]) && /INBOX, Lists/.test(rows[0]), rows.join());
    check(await page.$eval('html', it => it.lang) === 'en', 'the language');

    // A keyboard reaches all that can be done, and removing says so.
    await page.$eval('#subscriptions li button:last-of-type', it => it.focus());
    await page.keyboard.press('Enter');
    await page.waitForSelector('#none:not([hidden])');
    await until('the word of it', () => text(page, '#status'));
    check(await page.evaluate(() => document.activeElement.id) === 'all-title', 'the focus goes to the list');
    await fits(page, 'removed');

    // The policy holds: text that becomes markup is refused, and Chromium says so.
    check(problems.length === 0, problems.join('\n'));
    check(await page.evaluate(() => { try { document.body.insertAdjacentHTML('beforeend', '<p>'); return false; } catch { return true; } }), 'Trusted Types');
    await until('the word of it', () => problems.splice(0).some(it => /TrustedHTML/.test(it)));

    // Without a network there is a plain page, and no answer of the API is in a cache.
    await page.evaluate(() => navigator.serviceWorker.ready.then(() => undefined));
    const cached = await page.evaluate(async () => {
      const paths = [];
      for (const name of await caches.keys()) {
        for (const request of await (await caches.open(name)).keys()) paths.push(new URL(request.url).pathname);
      }
      return paths;
    });
    check(cached.includes('/offline.html') && !cached.some(path => path.startsWith('/v1/')), cached.join());
    await page.focus('#log-out');
    await page.keyboard.press('Enter');
    await page.waitForSelector('#log-in:not([hidden])');
    check(await page.evaluate(async () => (await fetch('/v1/session')).status) === 401, 'logged out');
    check(problems.length === 0, problems.join('\n'));
    await worksOffline(context, page, url);
    await context.close();

    await canBeInstalled(browser, url);
    await saysThatItNeedsScripts(browser, url);

    // A browser that has been told to allow nothing says so, and there is no button that cannot work.
    const denied = await open(browser, url, ['en']);
    await denied.context.overridePermissions(url, []);
    await denied.page.reload();
    await readyForAxe(denied.page);
    await logIn(denied.page);
    check(/does not allow notifications/.test(await text(denied.page, '#notify-state')), await text(denied.page, '#notify-state'));
    check(await denied.page.$eval('#choice', it => it.hidden), 'a button that cannot work');
    await fits(denied.page, 'denied');
    await denied.context.close();

    // A browser that starts no service worker is not waited for without an end.
    const idle = await open(browser, url, ['en'], page => page.evaluateOnNewDocument(() => {
      Object.defineProperty(ServiceWorkerContainer.prototype, 'ready', { get: () => new Promise(() => {}) });
    }));
    await idle.context.overridePermissions(url, ['notifications']);
    await logIn(idle.page);
    await idle.page.waitForSelector('#mailboxes li');
    await idle.page.click('#notify-button');
    await until('what to do', async () => (await text(idle.page, '#alert')).startsWith('This browser has not started'));
    check(!await idle.page.$eval('#notify-button', it => it.disabled), 'the button can be tapped again');
    await idle.context.close();

    const german = await open(browser, url, ['fr', 'de-AT', 'en']);
    await logIn(german.page);
    check(await german.page.$eval('html', it => it.lang) === 'de', 'German');
    check(await text(german.page, '#log-out') === 'Abmelden', 'German texts');
    await fits(german.page, 'german');
    check(german.problems.length === 0, german.problems.join('\n'));

    // Safari on an iPhone, in a tab: it takes no pushes there, and the page says what to do.
    const iphone = await open(browser, url, ['en-US'], async page => {
      await page.setUserAgent({ userAgent: IPHONE });
      await page.evaluateOnNewDocument(() => {
        delete window.PushManager;
        delete window.Notification;
        Object.defineProperty(Navigator.prototype, 'standalone', { get: () => false });
      });
    });
    await iphone.page.waitForSelector('#install:not([hidden])');
    await fits(iphone.page, 'iphone');
    await reachable(iphone.page, 'iphone');
    await logIn(iphone.page);
    check(await iphone.page.$eval('#notify', it => it.hidden), 'no button that cannot work');
    check(await iphone.page.$eval('#open-mail', it => it.getAttribute('href')) === 'message:', 'the mail program');
    check(iphone.problems.length === 0, iphone.problems.join('\n'));

    // An iPad says that it is a Mac, which has no touch screen.
    for (const [touchPoints, hidden] of [[5, false], [0, true]]) {
      const mac = await open(browser, url, ['en-US'], async page => {
        await page.setUserAgent({ userAgent: MAC });
        await page.evaluateOnNewDocument(points => {
          delete window.PushManager;
          delete window.Notification;
          Object.defineProperty(Navigator.prototype, 'standalone', { get: () => false });
          Object.defineProperty(Navigator.prototype, 'maxTouchPoints', { get: () => points });
        }, touchPoints);
      });
      await mac.page.waitForSelector('#log-in:not([hidden])');
      check(await mac.page.$eval('#install', it => it.hidden) === hidden, `how to install, with ${touchPoints} fingers`);
      await mac.context.close();
    }

    // On its home screen it takes them, and the page no longer says how to get there.
    const installed = await open(browser, url, ['en-US'], async page => {
      await page.setUserAgent({ userAgent: IPHONE });
      await page.evaluateOnNewDocument(() => Object.defineProperty(Navigator.prototype, 'standalone', { get: () => true }));
    });
    await installed.context.overridePermissions(url, ['notifications']);
    await logIn(installed.page);
    await installed.page.waitForSelector('#mailboxes li');
    check(await installed.page.$eval('#install', it => it.hidden), 'it says how to come where it is');
    check(await installed.page.$eval('#notify-button', it => it.checkVisibility()), 'the button that notifies');
    check(installed.problems.length === 0, installed.problems.join('\n'));
  } finally {
    await browser.close();
  }
});
