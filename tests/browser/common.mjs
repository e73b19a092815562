// What the scripts share: the browsers, and the dialogue with the test that runs them. A script prints what
// it wants done, a line each, and reads answers, a line each.
import { readFileSync } from 'node:fs';
import { createHash, X509Certificate } from 'node:crypto';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const { FOLDER, PUPPETEER, AXE } = process.env;
const load = folder => createRequire(`${folder}/`);
const puppeteer = load(PUPPETEER)('puppeteer-core').default ?? load(PUPPETEER)('puppeteer-core');
const axeFile = AXE && load(AXE).resolve('axe-core/axe.min.js');
/** Safari on a Mac, which iPads say that they are. */
export const MAC = 'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.0 Safari/605.1.15';

export const file = name => `${FOLDER}/${name}`;

export const LOGIN = 'alice@example.org';
export const PASSWORD = 'secret';

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
export const want = line => console.log(line);
export const hear = async () => (await lines.next()).value;

/** Runs `script`, closes the browser, and ends with 1 and the reason where it fails. */
export async function main(script) {
  try {
    await script();
    process.exit(0);
  } catch (error) {
    console.error(error);
    process.exit(1);
  }
}

export function check(holds, what) {
  if (!holds) throw new Error(what);
}

/** How long each step may take, in milliseconds, on a machine that is busy. */
const LIMIT = 90_000;

/** Asks until the answer is not empty. */
export async function until(what, ask) {
  const end = Date.now() + LIMIT;
  while (Date.now() < end) {
    const answer = await ask();
    if (answer) return answer;
    await new Promise(resolve => setTimeout(resolve, 100));
  }
  throw new Error(`it did not come: ${what}`);
}

/**
 * Chromium that takes the test's certificate, by the hash of its public key: with any other switch its errors
 * would be overlooked and no service worker started.
 */
export function chromium(options = {}) {
  const der = new X509Certificate(readFileSync(file('server.pem'))).publicKey.export({ type: 'spki', format: 'der' });
  const spki = createHash('sha256').update(der).digest('base64');
  return puppeteer.launch({
    executablePath: '/usr/bin/chromium',
    headless: true,
    timeout: LIMIT,
    args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', `--ignore-certificate-errors-spki-list=${spki}`],
    ...options,
  });
}

/** Firefox in a profile that the test has made, with what its person would have allowed. */
export function firefox(profile) {
  const settings = readFileSync(`${profile}/user.js`, 'utf8').matchAll(/^user_pref\("(.*?)", (.*)\);$/gm);
  return puppeteer.launch({
    browser: 'firefox',
    executablePath: '/usr/bin/firefox-esr',
    headless: true,
    timeout: LIMIT,
    userDataDir: profile,
    acceptInsecureCerts: false,
    extraPrefsFirefox: {
      // Automation would turn the connection to the push service off.
      'remote.prefs.recommended': false,
      'dom.push.testing.ignorePermission': true,
      'dom.push.connection.enabled': true,
      'permissions.default.desktop-notification': 1,
      // No desktop is there to show notifications.
      'alerts.useSystemBackend': false,
      'intl.accept_languages': 'en-US, en',
      'network.proxy.type': 0,
      'services.settings.server': 'http://127.0.0.1:9/',
      'browser.safebrowsing.malware.enabled': false,
      'browser.safebrowsing.phishing.enabled': false,
      // The driver writes its own user.js over the profile's.
      ...Object.fromEntries([...settings].map(([, name, value]) => [name, JSON.parse(value)])),
    },
  });
}

/** A page in which each step may take as long. */
export async function newPage(context) {
  const page = await context.newPage();
  page.setDefaultTimeout(LIMIT);
  return page;
}

/** Has axe-core in the page; it reads it through the debugger, whatever the page's policy is. */
export const readyForAxe = page => page.evaluate(readFileSync(axeFile, 'utf8'));

/** No scroll bar to the side and nothing for axe-core to say, at three widths, light and dark; then `picture` of each. */
export async function fitsWidths(page, name, picture) {
  for (const width of [360, 768, 1280]) {
    for (const scheme of ['light', 'dark']) {
      await page.setViewport({ width, height: 800 });
      await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
      const [wide, has] = await page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
      check(wide <= has, `${name} is ${wide} wide at ${width}`);
      const { violations } = await page.evaluate(async () => axe.run());
      const told = violations.map(it => `${it.id}: ${it.nodes.map(node => node.html).join(' ')}`);
      check(told.length === 0, `${name} at ${width}, ${scheme}: ${told.join('\n')}`);
      await picture(`${name}-${width}-${scheme}`);
    }
  }
}

/** A picture for the docs, where SCREENSHOTS names their folder. */
export async function screenshot(page, name) {
  if (!process.env.SCREENSHOTS) return;
  // What was hidden just now still counts in the height of a page that has not been drawn since.
  await page.evaluate(() => new Promise(done => { requestAnimationFrame(() => requestAnimationFrame(done)); }));
  await page.screenshot({ path: `${process.env.SCREENSHOTS}/${name}.png`, fullPage: true });
}

/** Fills in the form and waits for the account's page: its title gets the focus once all of it is shown. */
export async function logIn(page, login = LOGIN, password = PASSWORD) {
  await page.waitForSelector('#log-in:not([hidden])');
  await page.type('#login', login);
  await page.type('#password', password);
  await page.keyboard.press('Enter');
  await until('the account', () => page.evaluate(() => /^(notify|all)-title$/.test(document.activeElement.id)));
}
