// The service worker: pushes become notifications.
'use strict';

// Trusted Types: a script is loaded by a policy, and this one knows one script.
importScripts(self.trustedTypes
  ? trustedTypes.createPolicy('mailchime', { createScriptURL: () => '/shared.js' }).createScriptURL('')
  : '/shared.js');

// Files for the time without a network. Nothing of the API is among them.
const FILES = 'mailchime-files';
const OFFLINE = ['/offline.html', '/style.css', '/icon.svg', '/icon-192.png', '/badge.png', '/settings.json',
  ...LANGUAGES.map(it => `/texts/${it}.json`)];

// Firefox lets a tap open a window for a second. How long the network is waited for then, in milliseconds.
const TAP = 500;

self.addEventListener('install', event => event.waitUntil((async () => {
  await (await caches.open(FILES)).addAll(OFFLINE.map(path => new Request(path, { cache: 'reload' })));
  await self.skipWaiting();
})()));

self.addEventListener('activate', event => event.waitUntil(self.clients.claim()));

self.addEventListener('fetch', event => {
  const { request } = event;
  const url = new URL(request.url);
  if (request.method !== 'GET' || url.origin !== self.location.origin || url.pathname.startsWith('/v1/')) return;
  const kept = request.mode === 'navigate' ? '/offline.html' : url.pathname;
  event.respondWith(fetch(request).catch(async () => (await fromCache(kept)) ?? Response.error()));
});

// Changes that come together: each reads the notification that the one before has left.
let last = Promise.resolve();
self.addEventListener('push', event => event.waitUntil(pushed(event.data)));
self.addEventListener('notificationclick', event => {
  event.notification.close();
  event.waitUntil(opened(event.notification.data ?? {}));
});
self.addEventListener('pushsubscriptionchange', event => event.waitUntil(renew(event.newSubscription)));

async function fromCache(path) {
  return (await caches.open(FILES)).match(path, { ignoreVary: true });
}

async function toCache(path, answer) {
  await (await caches.open(FILES)).put(path, answer);
}

/** A JSON file of this server, or as it was when the network does not answer within `patience`, in milliseconds. */
async function file(path, patience = 3000) {
  try {
    const answer = await fetch(path, { signal: AbortSignal.timeout(patience) });
    if (answer.ok) {
      const [copy, json] = [answer.clone(), await answer.json()];
      await toCache(path, copy).catch(console.warn);
      return json;
    }
  } catch { /* there is the cache */ }
  const kept = await fromCache(path);
  return kept ? kept.json() : {};
}

const readTexts = () => file(`/texts/${language()}.json`);

// How long the worker waits for an answer of the API, in milliseconds.
const ANSWER = 20_000;

// The mode of fetch() stays as it is: only with it do browsers send an Origin in spite of no-referrer.
const api = (path, method = 'GET', body = undefined) => fetch(path, {
  method,
  credentials: 'same-origin',
  cache: 'no-store',
  signal: AbortSignal.timeout(ANSWER),
  ...(body === undefined ? {} : { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
});

async function pushed(data) {
  let message = null;
  try { message = data?.json(); } catch { /* as one that is not known */ }
  if (message?.type === 'subscription.verify') return confirm(String(message.data?.code));
  const reading = readTexts();
  if (message?.type === 'mailbox.changed' && message.data) {
    last = last.catch(() => {}).then(() => changed(message.data, reading));
    await last;
    return tellPages({ type: 'pushed' });
  }
  const texts = await reading;
  return show(texts.something_new, { tag: 'mailchime', body: '', data: {} });
}

function show(title, options) {
  return self.registration.showNotification(title, {
    icon: '/icon-192.png', badge: '/badge.png', lang: language(), ...options,
  });
}

async function tellPages(message) {
  const pages = await self.clients.matchAll({ includeUncontrolled: true, type: 'window' });
  for (const page of pages) page.postMessage(message);
}

/** Gives a code back. The push does not say which subscription it is for, so each pending one is tried. */
async function confirm(code) {
  const texts = await readTexts();
  const id = await confirmed(code).catch(() => null);
  const title = id ? texts.works_title : texts.unconfirmed_title;
  const body = id ? texts.works_body : texts.unconfirmed_body;
  await tellPages({ type: id ? 'confirmed' : 'unconfirmed', id });
  await show(title, { tag: 'mailchime', body, data: { page: true } });
}

async function confirmed(code) {
  const answer = await api('/v1/subscriptions');
  if (!answer.ok) return null;
  const { subscriptions } = await answer.json();
  const pending = subscriptions.filter(it => it.transport === 'webpush' && it.state === 'pending');
  for (const { id } of pending.reverse()) {
    const given = await api(`/v1/subscriptions/${encodeURIComponent(id)}/confirm`, 'POST', { code });
    if (given.ok) return id;
  }
  return null;
}

/** The mailboxes of an account have changed. Its notifications replace each other. */
async function changed({ account, mailboxes, preview }, reading) {
  const tag = `mail:${account}`;
  const [shown] = await self.registration.getNotifications({ tag });
  const unread = new Map((shown?.data?.mailboxes ?? []).map(it => [it.name, it.unseen]));
  // How many were unread before the mails that are shown.
  const before = new Map((shown?.data?.mailboxes ?? []).map(it => [it.name, it.before ?? 0]));
  let isNew = false;
  for (const { mailbox, kind, unseen, unseen_before: earlier } of mailboxes) {
    const known = typeof unseen === 'number' ? unseen : null;
    if (kind === 'new') {
      isNew = true;
      // The lowest: those before may be read when more comes. Where it is not known, all have to be read.
      const most = known === null ? Infinity : Math.max(known - 1, 0);
      const count = Math.min(typeof earlier === 'number' ? earlier : 0, most);
      before.set(mailbox, Math.min(before.get(mailbox) ?? count, count));
      unread.delete(mailbox);
      // What came last is named first.
      const rest = [...unread];
      unread.clear();
      for (const [name, count] of [[mailbox, known], ...rest]) unread.set(name, count);
    } else if (unread.has(mailbox)) {
      if (known !== null && known <= before.get(mailbox)) unread.delete(mailbox);
      else unread.set(mailbox, known);
      // Those before may be read as well.
      if (known !== null) before.set(mailbox, Math.min(before.get(mailbox), known));
    }
  }
  if (isNew || (shown && unread.size > 0)) {
    const newest = newestOf(isNew, preview, shown?.data?.newest, { unread, before });
    return announce(account, tag, { unread, before }, isNew, newest, await reading);
  }
  // Safari and Firefox end a subscription whose pushes show nothing: mailchime sends them new mail alone.
  for (const old of await self.registration.getNotifications({ tag })) old.close();
  return undefined;
}

/** What is known of the newest mail, with the count of all that were announced and are still shown. */
function newestOf(isNew, preview, shown, { unread, before }) {
  // What was read elsewhere is counted no more.
  const capped = (mailbox, messages) => {
    const unseen = unread.get(mailbox);
    return typeof unseen === 'number' ? Math.min(messages, Math.max(unseen - (before.get(mailbox) ?? 0), 1)) : messages;
  };
  if (!isNew) {
    if (!shown || !unread.has(shown.mailbox)) return null;
    return { ...shown, messages: capped(shown.mailbox, shown.messages) };
  }
  if (typeof preview?.mailbox !== 'string' || !unread.has(preview.mailbox)) return null;
  const earlier = shown?.mailbox === preview.mailbox ? shown.messages : 0;
  return { ...preview, messages: capped(preview.mailbox, (Number(preview.messages) || 1) + earlier) };
}

async function announce(account, tag, { unread, before }, isNew, newest, texts) {
  const names = [...unread.keys()];
  const mailbox = isolated(names[0] ?? 'INBOX');
  const title = names.length > 1
    ? counted(texts, 'new_mail_more', names.length - 1, { mailbox })
    : fill(texts.new_mail, { mailbox });
  const lines = [...unread].filter(([, count]) => count !== null).slice(0, 4)
    .map(([name, count]) => counted(texts, 'unread', count, { mailbox: isolated(name) }));
  const told = [];
  if (newest?.subject) told.push(isolated(newest.subject, 200));
  if (newest?.messages > 1) told.push(counted(texts, 'newest_more', newest.messages - 1));
  // Where the sender is the title, the mailbox is named below.
  if (newest?.sender && unread.get(newest.mailbox) === null) told.push(title);
  await show(newest?.sender ? isolated(newest.sender) : title, {
    tag,
    body: [...told, ...lines, isolated(account)].join('\n'),
    renotify: isNew,
    silent: !isNew,
    data: {
      account, newest, mailboxes: [...unread].map(([name, unseen]) => ({ name, unseen, before: before.get(name) })),
    },
  });
}

/** A tap leads to the user's mail; a browser that opens no such link gets the page, which has it. */
async function opened(data) {
  const link = data.page ? null : mailLink(await file('/settings.json', TAP));
  if (link?.startsWith('https:')) {
    // What comes back of a page of another server is null.
    try { await self.clients.openWindow(link); return; } catch { /* the page */ }
  }
  const pages = await self.clients.matchAll({ type: 'window', includeUncontrolled: true });
  const open = pages.find(it => new URL(it.url).pathname === '/');
  if (!open) {
    await self.clients.openWindow(link ? '/#mail' : '/');
    return;
  }
  try { await open.focus(); } finally { if (link) open.postMessage({ type: 'open_mail' }); }
}

/** The push service has another endpoint for this browser. */
async function renew(given) {
  const accounts = await remembered();
  if (Object.keys(accounts).length === 0) return;
  const renewed = await renewedOf(accounts, given).catch(() => null);
  // The others are made anew when their users log in.
  if (renewed === null || Object.keys(accounts).length > 1) {
    const texts = await readTexts();
    await show(texts.renew_title, { tag: 'mailchime', body: texts.renew_body, data: { page: true } });
  }
}

/** Subscribes for the account that is logged in. Gives its name, or null where nothing was made. */
async function renewedOf(accounts, given) {
  const { applicationServerKey } = await (await api('/v1/vapid')).json();
  const options = { userVisibleOnly: true, applicationServerKey };
  const subscription = given ?? await self.registration.pushManager.subscribe(options);
  const session = await api('/v1/session');
  const account = session.ok ? (await session.json()).account : null;
  if (account === null || !Object.hasOwn(accounts, account)) return null;
  const { mailboxes: wanted } = accounts[account];
  const body = { transport: 'webpush', quiet: true, mailboxes: wanted, ...subscription.toJSON() };
  const made = await api('/v1/subscriptions', 'POST', body);
  if (!made.ok) return null;
  await rememberMade(account, await made.json(), subscription.endpoint);
  return account;
}
