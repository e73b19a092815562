// The list of all who are notified, and the choice of mailboxes where there are many, in Chromium: one of each kind is
// subscribed, and the test has a mail pushed to them.
import { check, chromium, hear, logIn, main, newPage, until, want } from './common.mjs';

const KINDS = ['Apple Mail', 'Android app', 'Browser', 'Web hook'];

main(async () => {
  const url = await hear();
  const browser = await chromium();
  try {
    const context = await browser.createBrowserContext();
    await context.overridePermissions(url, ['notifications']);
    const page = await newPage(context);
    const problems = [];
    page.on('pageerror', error => problems.push(error.message));
    await page.goto(url);
    await logIn(page);
    await page.waitForSelector('#mailboxes li');
    const rows = () => page.$$eval('#subscriptions li', all => all.map(it => it.innerText));
    const before = await rows();
    for (const kind of KINDS) check(before.some(it => it.startsWith(kind)), `${kind} is not in ${before}`);
    check(before.length === KINDS.length && before.every(it => / · no push yet$/m.test(it)), before.join('\n'));

    // The user comes back to the page after a push to each: the list says so, and the focus is where it was.
    const focus = await page.$$eval('#subscriptions button', all => { all.at(-1).focus(); return all.at(-1).ariaLabel; });
    want('push');
    await hear();
    await page.evaluate(() => document.dispatchEvent(new Event('visibilitychange')));
    await until('the last push of each', async () => (await rows()).every(it => / · last push .*\d:\d\d/.test(it)));
    check(await page.evaluate(() => document.activeElement.ariaLabel) === focus, 'the focus is lost');

    // What has not changed stays as it is.
    const [row] = await page.$$('#subscriptions li');
    check(await page.evaluate(() => showSubscriptions()) === false, 'it says that the list has changed');
    check(await row.evaluate(it => it.isConnected), 'the list was made anew');

    // An answer that was slow is older than what is shown.
    const isShown = await page.evaluate(async () => {
      const ask = window.fetch;
      let arrive;
      const answer = new Promise(resolve => { arrive = () => resolve(Response.json({ subscriptions: [] })); });
      window.fetch = () => answer;
      const slow = showSubscriptions();
      window.fetch = ask;
      await showSubscriptions();
      arrive();
      return slow;
    });
    check(isShown === false && (await rows()).length === KINDS.length, `an older list is shown: ${await rows()}`);

    // Many mailboxes can be searched, by keyboard, and what is chosen stays chosen while it is not shown.
    const shown = () => page.$$eval('#mailboxes li', all => all.filter(it => it.checkVisibility()).map(it => it.textContent));
    check((await shown()).length > 12, `${await shown()}`);
    await page.focus('#filter');
    await page.keyboard.type('list 7');
    check((await shown()).join() === 'List 7', `${await shown()}`);
    await page.keyboard.press('Tab');
    await page.keyboard.press('Space');
    await page.click('#filter', { count: 3 });
    await page.keyboard.press('Backspace');
    const chosen = await page.$$eval('#mailboxes input:checked', all => all.map(it => it.mailbox));
    check(chosen.join() === 'INBOX,List 7', `${chosen}`);
    check((await shown()).length > 12, `${await shown()}`);

    // A session that has ended says so when its user comes back.
    await page.evaluate(() => fetch('/v1/session', { method: 'DELETE' }));
    await page.evaluate(() => document.dispatchEvent(new Event('visibilitychange')));
    await page.waitForSelector('#log-in:not([hidden])');
    check(/logged out/.test(await page.$eval('#alert', it => it.textContent)), 'the word of it');
    check(problems.length === 0, problems.join('\n'));
  } finally {
    await browser.close();
  }
});
