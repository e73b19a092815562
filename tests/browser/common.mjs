// What the scripts share: the browsers, and the dialogue with the test that runs them. A script prints what
// it wants done, a line each, and reads answers, a line each.
import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import { createHash, X509Certificate } from 'node:crypto';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const { FOLDER, PUPPETEER, AXE } = process.env;
const load = folder => createRequire(`${folder}/`);
const puppeteer = load(PUPPETEER)('puppeteer-core').default ?? load(PUPPETEER)('puppeteer-core');
export const { WebSocketServer } = load(PUPPETEER)('ws');
export const axeFile = AXE && load(AXE).resolve('axe-core/axe.min.js');
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

/** Firefox with the test's authority in its profile, and this stand-in of Mozilla's push service. */
export function firefox(pushServer, prefs = {}) {
  const profile = file('firefox');
  mkdirSync(profile);
  execFileSync('certutil', ['-N', '-d', `sql:${profile}`, '--empty-password']);
  execFileSync('certutil', ['-A', '-d', `sql:${profile}`, '-n', 'test', '-t', 'C,,', '-i', file('ca.pem')]);
  return puppeteer.launch({
    browser: 'firefox',
    executablePath: '/usr/bin/firefox-esr',
    headless: true,
    timeout: LIMIT,
    userDataDir: profile,
    extraPrefsFirefox: {
      // Automation would turn the connection to the push service off.
      'remote.prefs.recommended': false,
      'dom.push.serverURL': pushServer,
      'dom.push.testing.allowInsecureServerURL': true,
      'dom.push.testing.ignorePermission': true,
      'dom.push.connection.enabled': true,
      'permissions.default.desktop-notification': 1,
      // No desktop is there to show notifications.
      'alerts.useSystemBackend': false,
      'intl.accept_languages': 'en-US, en',
      'network.proxy.type': 0,
      'datareporting.policy.dataSubmissionEnabled': false,
      'app.update.enabled': false,
      'browser.shell.checkDefaultBrowser': false,
      'toolkit.telemetry.enabled': false,
      'services.settings.server': 'http://127.0.0.1:9/',
      'browser.safebrowsing.malware.enabled': false,
      'browser.safebrowsing.phishing.enabled': false,
      'extensions.update.enabled': false,
      'network.captive-portal-service.enabled': false,
      'network.connectivity-service.enabled': false,
      ...prefs,
    },
  });
}

/** A page in which each step may take as long. */
export async function newPage(context) {
  const page = await context.newPage();
  page.setDefaultTimeout(LIMIT);
  return page;
}

/** Fills in the form and waits for the account's page. */
export async function logIn(page) {
  await page.waitForSelector('#log-in:not([hidden])');
  await page.type('#login', LOGIN);
  await page.type('#password', PASSWORD);
  await page.keyboard.press('Enter');
  await page.waitForSelector('#all:not([hidden])');
}
