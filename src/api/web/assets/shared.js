// What the page and the service worker share.
'use strict';

const LANGUAGES = ['en', 'de'];

// Under this name the Cache API holds what this browser is notified of, by account, and nothing that the
// server has answered.
const MEMORY = 'mailchime-memory';

/** The first language of the browser that there are texts in. */
function language() {
  const wanted = (navigator.languages ?? [navigator.language]).map(tag => tag.toLowerCase().split('-')[0]);
  return wanted.find(tag => LANGUAGES.includes(tag)) ?? 'en';
}

/** The text with its {names} replaced. */
function fill(text, values = {}) {
  return text.replace(/\{(\w+)\}/g, (whole, name) => (Object.hasOwn(values, name) ? String(values[name]) : whole));
}

/** The text for this count: its key ends in the word of the language's plural rule. */
function counted(texts, key, count, values = {}) {
  const rule = new Intl.PluralRules(language()).select(count);
  return fill(texts[`${key}_${rule}`] ?? texts[`${key}_other`], { ...values, count });
}

/**
 * A name that a stranger may have chosen, as it can be shown: no controls, nothing that turns the direction
 * of the text around it, and not too long.
 */
function plain(name, most = 60) {
  const shown = [...String(name).replace(/[\p{Cc}\p{Zl}\p{Zp}\p{Cs}\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]/gu, '')];
  return shown.length > most ? `${shown.slice(0, most - 1).join('')}\u2026` : shown.join('');
}

/** The same within a text, whose direction it leaves alone. */
function isolated(name, most = undefined) {
  return `\u2068${plain(name, most)}\u2069`;
}

/** What this browser is notified of: {account: {id, mailboxes, endpoint, former}}; `former` are ids of before, to be removed. */
async function remembered() {
  const kept = await (await caches.open(MEMORY)).match('/remembered');
  return kept ? kept.json() : {};
}

/** Keeps this for an account, or with null nothing. */
async function remember(account, value) {
  const kept = new Map(Object.entries(await remembered()));
  if (value) kept.set(account, value);
  else kept.delete(account);
  const body = JSON.stringify(Object.fromEntries(kept));
  await (await caches.open(MEMORY)).put('/remembered', new Response(body));
  return kept.size;
}

/** Keeps the subscription that was made for an account. One that it replaces is removed once it is confirmed. */
async function rememberMade(account, { id, mailboxes }, endpoint) {
  const kept = await remembered();
  const before = Object.hasOwn(kept, account) ? kept[account] : null;
  const ids = before ? [...before.former ?? [], before.id] : [];
  const former = [...new Set(ids)].filter(it => it !== id);
  await remember(account, { id, mailboxes, endpoint, former });
}

/** Where a tap on a notification leads, or null. `message:` is the mail program of Apple's devices. */
function mailLink(settings) {
  if (settings.mail_url) return settings.mail_url;
  return /Mac OS X|Macintosh|iPhone|iPad/.test(navigator.userAgent) ? 'message:' : null;
}
