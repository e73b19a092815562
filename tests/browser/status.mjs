// The status page of [admin] in Chromium: at three widths, light and dark, by axe-core's rules, by keyboard, and with names that
// are chosen to do harm. SCREENSHOTS names a folder for the pictures of the docs (docs/images/make.sh).
import { check, chromium, fitsWidths, hear, main, newPage, readyForAxe, screenshot, until, want } from './common.mjs';

const PICTURES = ['status-1280-light', 'status-1280-dark', 'status-360-light'];

const fits = (page, name) => fitsWidths(page, name, async picture => {
  if (!PICTURES.includes(picture)) return;
  // The files of the test are where those of a server would be.
  await page.evaluate(() => {
    for (const it of document.querySelectorAll('bdi')) it.textContent = it.textContent.replace(/^\/.*\/(?=[^/]*\.pem$)/, '/etc/mailchime/');
  });
  await screenshot(page, picture);
});

const text = page => page.$eval('body', it => it.innerText);

main(async () => {
  const url = await hear();
  const browser = await chromium();
  try {
    const page = await newPage(await browser.createBrowserContext());
    const problems = [];
    page.on('pageerror', error => problems.push(error.message));
    page.on('console', message => { if (message.type() === 'error') problems.push(message.text()); });
    page.on('dialog', dialog => { problems.push(`a dialog: ${dialog.message()}`); dialog.dismiss(); });

    await page.goto(url);
    await readyForAxe(page);
    await fits(page, 'status');
    check(await page.$eval('main > :first-child h2', it => it.textContent) === 'Warnings', 'warnings come first');
    check(/alice@example\.org/.test(await text(page)), 'who is watched');
    const background = await page.$eval('section', it => getComputedStyle(it).backgroundColor);
    check(background === 'rgb(27, 36, 43)', `the dark style is there: ${background}`);

    // A keyboard is enough to look an account up.
    await page.focus('#user');
    await page.keyboard.type('alice@example.org');
    await Promise.all([page.waitForNavigation(), page.keyboard.press('Enter')]);
    check(new URL(page.url()).search === '?user=alice%40example.org', page.url());
    check(await page.$eval('#account', it => it.textContent) === 'Account alice@example.org', 'the account');
    check(/Lists/.test(await text(page)), 'its mailboxes');
    await readyForAxe(page);
    await fits(page, 'found');

    // Names that are markup are text.
    want('hostile');
    const name = await hear();
    await page.goto(`${url}/?user=${encodeURIComponent(name)}`);
    check((await text(page)).includes(name), 'the name as it is');
    check((await text(page)).includes('<script>alert(2)</script>'), 'the mailbox as it is');
    check(await page.$$eval('script, main img, iframe', all => all.length) === 0, 'no markup of a name');
    await readyForAxe(page);
    await fits(page, 'hostile');
    check(problems.length === 0, problems.join('\n'));

    // What would get in all the same does not run.
    await page.evaluate(() => {
      const script = document.createElement('script');
      script.textContent = 'window.ran = true';
      document.body.append(script);
    });
    check(await page.evaluate(() => window.ran) === undefined, 'a script within the page');
    await until('the word of the policy', () => problems.splice(0).some(it => /Content Security Policy/.test(it)));
  } finally {
    await browser.close();
  }
});
