// The page. All that it shows of the server's answers goes in as text.
'use strict';

const at = id => document.getElementById(id);

/** How long the first push of a subscription is waited for, in milliseconds. */
const PATIENCE = 60_000;

/** How long the service worker may take to start, in milliseconds. */
const START = 15_000;

/** How long the user counts as present after a touch or a key, in milliseconds: to ask keeps a session alive. */
const PRESENT = 300_000;

/** When the list is asked for after a push, each time so many milliseconds later: mailchime may note it after it is here. */
const LOOKS = [500, 2_000, 8_000];

/** With this behind it, the page opens the user's mail. */
const MAIL = '#mail';

/** From so many mailboxes on they can be searched. */
const MANY = 12;

let texts = {};
let settings = {};
let account = null;
/** The VAPID key, or null where Web Push is off. */
let key = null;
/** This browser's subscription for the account, as the list has it. */
let own = null;
/** What the list shows, as JSON. */
let listed = '';
let waiting = null;
/** When the user touched the page last, or a key. */
let acted = Date.now();
/** Which look at the list is the newest. */
let looks = 0;

/** How often the list was asked for, and which of these answers is shown. */
let asked = 0;
let answered = 0;

class ApiError extends Error {
  constructor(status, code, field = null) {
    super(code);
    this.status = status;
    this.code = code;
    this.field = field;
  }
}

/** Asks the API. The mode of fetch() stays as it is: with it browsers send an Origin in spite of no-referrer. */
async function api(path, method = 'GET', body = undefined) {
  const options = { method, credentials: 'same-origin', cache: 'no-store' };
  if (body !== undefined) Object.assign(options, { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });
  let answer;
  try { answer = await fetch(path, options); } catch { throw new ApiError(0, 'network'); }
  const json = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (!answer.ok) throw new ApiError(answer.status, json?.error ?? 'other', json?.field);
  return json;
}

// === What is said ===

/** Says what has happened; screen readers read it out. */
function say(text) {
  at('alert').textContent = '';
  at('status').textContent = text;
}

/** Says what is wrong. */
function complain(error) {
  if (!(error instanceof ApiError) && error?.name !== 'AbortError') console.error(error);
  // The push service does not know the endpoint (any more).
  const isGone = error.code === 'invalid' && error.field === 'endpoint';
  const code = !(error instanceof ApiError) ? 'other' : isGone ? 'gone' : error.code;
  if (error.status === 401 && account !== null) {
    logInAgain();
    return;
  }
  at('status').textContent = '';
  at('alert').textContent = texts[`error_${code}`] ?? texts.error_other;
}

/** Runs what a button does, which cannot be tapped meanwhile, and says what goes wrong. */
async function run(button, action) {
  if (button.disabled) return;
  const hadFocus = document.activeElement === button;
  button.disabled = true;
  try { await action(); } catch (error) { complain(error); } finally {
    button.disabled = false;
    if (hadFocus && document.activeElement === document.body && button.isConnected) button.focus();
  }
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) {
    if (attribute === 'text') made.textContent = value;
    else made.setAttribute(attribute, value);
  }
  made.append(...children);
  return made;
}

const time = text => new Intl.DateTimeFormat(language(), { dateStyle: 'medium', timeStyle: 'short' }).format(new Date(text));

// === Logging in and out ===

function showLogIn() {
  account = null;
  own = null;
  listed = '';
  for (const id of ['who', 'notify', 'all']) at(id).hidden = true;
  at('mailboxes').replaceChildren();
  at('subscriptions').replaceChildren();
  at('log-in').hidden = false;
}

function logInAgain() {
  showLogIn();
  at('status').textContent = '';
  at('alert').textContent = texts.error_session;
  at('login').focus();
}

async function logIn() {
  const body = { login: at('login').value.trim(), password: at('password').value };
  at('password').value = '';
  try {
    ({ account } = await api('/v1/session', 'POST', body));
  } catch (error) {
    complain(error);
    at('password').focus();
    return;
  }
  say('');
  await showAccount();
  at(at('notify').hidden ? 'all-title' : 'notify-title').focus();
}

async function logOut() {
  await api('/v1/session', 'DELETE');
  showLogIn();
  say(texts.logged_out);
  at('login').focus();
}

async function showAccount() {
  at('log-in').hidden = true;
  at('account').textContent = plain(account, 80);
  at('who').hidden = false;
  const link = mailLink(settings);
  at('open-mail').hidden = link === null;
  if (link !== null) at('open-mail').href = link;
  key = await api('/v1/vapid').then(it => it.applicationServerKey, error => {
    if (error.code === 'no_webpush') return null;
    throw error;
  });
  await showSubscriptions();
  await removeFormer().catch(console.warn);
  at('notify').hidden = isPlainTabOfApple();
  showNotifyState();
  if (canNotify()) {
    await showMailboxes();
    // The page waits for no push.
    const of = account;
    subscribeAnew().catch(error => { if (account === of) complain(error); });
  }
}

// === This browser ===

const isApplePhone = () => /iPhone|iPad|iPod/.test(navigator.userAgent)
  || (/Macintosh/.test(navigator.userAgent) && navigator.maxTouchPoints > 1);
const hasPush = () => 'serviceWorker' in navigator && 'PushManager' in window && 'Notification' in window;
const isPlainTabOfApple = () => !hasPush() && isApplePhone() && navigator.standalone !== true;
const canNotify = () => key !== null && hasPush() && Notification.permission !== 'denied';

function showNotifyState() {
  const problem = key === null ? texts.off
    : !hasPush() ? texts.cannot
      : Notification.permission === 'denied' ? texts.denied : null;
  at('choice').hidden = problem !== null;
  at('notify-state').textContent = problem ?? (own?.state === 'active' ? texts.on : '');
  at('notify-button').textContent = own?.state === 'active' ? texts.notify_save : texts.notify;
}

async function showMailboxes() {
  const { mailboxes } = await api('/v1/mailboxes');
  const chosen = new Set(own?.mailboxes ?? ['INBOX']);
  at('mailboxes').replaceChildren(...mailboxes.map(({ name }, number) => {
    const box = element('input', { type: 'checkbox', id: `mailbox-${number}` });
    box.checked = chosen.has(name);
    box.mailbox = name;
    return element('li', {}, element('label', { for: box.id }, box, element('bdi', { text: plain(name) })));
  }));
  at('filter-row').hidden = mailboxes.length < MANY;
  at('filter').value = '';
}

function filterMailboxes() {
  const wanted = at('filter').value.trim().toLocaleLowerCase();
  for (const row of at('mailboxes').children) {
    row.hidden = !row.textContent.toLocaleLowerCase().includes(wanted);
  }
}

async function notify() {
  const boxes = [...at('mailboxes').querySelectorAll('input')];
  const mailboxes = boxes.filter(box => box.checked).map(box => box.mailbox);
  if (mailboxes.length === 0) {
    at('status').textContent = '';
    at('alert').textContent = texts.mailboxes_none;
    boxes[0]?.focus();
    return;
  }
  // Browsers ask their user only while the tap is fresh, so this comes first.
  const permission = await Notification.requestPermission();
  if (permission !== 'granted') {
    showNotifyState();
    say(texts.dismissed);
    return;
  }
  await subscribe(await pushManager(), mailboxes);
}

/** Leads to the push service. Where the browser has refused the service worker it would be waited for in vain. */
async function pushManager() {
  const late = new Promise((_, reject) => { setTimeout(() => reject(new ApiError(0, 'worker')), START); });
  return (await Promise.race([navigator.serviceWorker.ready, late])).pushManager;
}

/**
 * This browser's subscription with the server's key; one with another key gets nothing any more, and so does one
 * that the push service does not know.
 */
async function subscribed(manager, isGone) {
  try {
    const former = await manager.getSubscription();
    const given = former?.options.applicationServerKey;
    if (former && (isGone || (given && base64url(given) !== key))) await former.unsubscribe();
    return await manager.subscribe({ userVisibleOnly: true, applicationServerKey: key });
  } catch (error) {
    console.warn(error);
    throw new ApiError(0, 'push_service');
  }
}

const base64url = buffer => btoa(String.fromCharCode(...new Uint8Array(buffer)))
  .replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');

/** Has the server notify this browser of these mailboxes. */
async function subscribe(manager, mailboxes) {
  const of = account;
  say(texts.waiting);
  const confirmed = firstPush();
  let made;
  try {
    made = await makeSubscription(await subscribed(manager, false), mailboxes).catch(async error => {
      if (error.field !== 'endpoint') throw error;
      return makeSubscription(await subscribed(manager, true), mailboxes);
    });
  } catch (error) {
    waiting?.(null);
    say('');
    throw error;
  }
  if (made.state === 'active') waiting?.(null);
  const came = await confirmed;
  // Another user is here, or the same one has asked for something else.
  if (account !== of || (came === null && made.state !== 'active')) return;
  await showSubscriptions();
  showNotifyState();
  if (!came && own?.state !== 'active') {
    at('status').textContent = '';
    at('alert').textContent = texts.waiting_long;
    return;
  }
  await removeFormer().catch(console.warn);
  const left = made.unreadable.map(isolated).join(', ');
  const done = made.state === 'active' ? texts.changes_saved : texts.works;
  say(left === '' ? done : `${done} ${fill(texts.mailboxes_unreadable, { mailboxes: left })}`);
}

async function makeSubscription(subscription, mailboxes) {
  const of = account;
  const body = { transport: 'webpush', quiet: true, mailboxes, ...subscription.toJSON() };
  const made = await api('/v1/subscriptions', 'POST', body);
  await rememberMade(of, made, subscription.endpoint);
  return made;
}

/** Whether the service worker says that a first push has come and was confirmed; null where nobody waits any more. */
function firstPush() {
  waiting?.(null);
  return new Promise(resolve => {
    const done = came => {
      clearTimeout(timer);
      if (waiting === done) waiting = null;
      resolve(came);
    };
    const timer = setTimeout(() => done(false), PATIENCE);
    waiting = done;
  });
}

/**
 * Subscribes again where the push service has given this browser another endpoint, or none, since it subscribed
 * for the account, or where the server has another key. Otherwise somebody has removed the subscription, and it stays
 * removed.
 */
async function subscribeAnew() {
  const kept = await remembered();
  const before = Object.hasOwn(kept, account) ? kept[account] : null;
  if (!before || Notification.permission !== 'granted') return;
  const of = account;
  const manager = await pushManager();
  const current = await manager.getSubscription();
  if (account !== of) return;
  const given = current?.options.applicationServerKey;
  const isOfOtherKey = Boolean(given) && base64url(given) !== key;
  if (isOfOtherKey || current?.endpoint !== before.endpoint) {
    await subscribe(manager, before.mailboxes);
  } else if (own === null) {
    if (!await removeAll(of, before.former ?? [])) return;
    await remember(of, null);
    if (account !== of) return;
    await showSubscriptions();
    say(texts.removed_elsewhere);
  }
}

/** Nothing is sent to those that this browser had before its own, so no push service says that they are gone. */
async function removeFormer() {
  const of = account;
  const kept = await remembered();
  const mine = Object.hasOwn(kept, of) ? kept[of] : null;
  if (!mine?.former?.length || own?.state !== 'active' || own.id !== mine.id) return;
  if (!await removeAll(of, mine.former)) return;
  await remember(of, { ...mine, former: [] });
  if (account === of) await showSubscriptions();
}

/** Removes subscriptions of this account, of which some may be gone already. Returns false where another user is here. */
async function removeAll(of, ids) {
  for (const id of ids) {
    if (account !== of) return false;
    await api(`/v1/subscriptions/${encodeURIComponent(id)}`, 'DELETE').catch(error => {
      if (error.status !== 404) throw error;
    });
  }
  return account === of;
}

// === All subscriptions ===

/**
 * Shows the list where it has changed, which it returns. The focus stays at what can be done with the same one. A look
 * (`lookAgain`) shows nothing once another has begun, or what the user does has shown the list.
 */
async function showSubscriptions(look = null) {
  if (look === null) looks += 1;
  const of = account;
  asked += 1;
  const mine = asked;
  const { subscriptions } = await api('/v1/subscriptions');
  const kept = await remembered();
  // An answer that was slow is older than what is shown.
  if (account !== of || mine < answered || (look !== null && look !== looks)) return false;
  answered = mine;
  const ownId = Object.hasOwn(kept, account) ? kept[account].id : null;
  own = subscriptions.find(it => it.id === ownId) ?? null;
  at('none').hidden = subscriptions.length > 0;
  at('all').hidden = false;
  const shown = JSON.stringify([subscriptions, ownId]);
  if (shown === listed) return false;
  listed = shown;
  const list = at('subscriptions');
  const focused = list.contains(document.activeElement) ? document.activeElement.id : null;
  list.replaceChildren(...subscriptions.map(subscriptionRow));
  if (focused !== null) (at(focused) ?? at('all-title')).focus();
  return true;
}

/** Shows what has become of the subscriptions meanwhile, after these pauses, until something has. */
async function lookAgain(pauses) {
  const [of, mine] = [account, ++looks];
  for (const pause of pauses) {
    await new Promise(resolve => { setTimeout(resolve, pause); });
    if (account === null || account !== of || mine !== looks || document.hidden) return;
    try {
      if (!await showSubscriptions(mine)) continue;
      showNotifyState();
    } catch (error) {
      if (error.status === 401) complain(error);
      else console.warn(error);
    }
    return;
  }
}

function cameBack() {
  acted = Date.now();
  if (!document.hidden) lookAgain([0]);
}

function subscriptionRow(it) {
  const kind = texts[`kind_${it.transport}`] ?? plain(it.transport);
  const host = /^https:\/\/([^/]+)/.exec(it.endpoint)?.[1];
  const name = it.id === own?.id ? `${kind} (${texts.this_browser})` : kind;
  const states = [it.pushed_at ? fill(texts.last_push, { time: time(it.pushed_at) }) : texts.never_pushed];
  if (it.state === 'pending') states.unshift(texts.pending);
  if (it.expires_at) states.push(fill(texts.expires, { time: time(it.expires_at) }));
  const row = element('li', {}, element('p', { class: 'name', text: name }));
  row.append(element('p', { class: 'quiet' }, ...it.mailboxes.flatMap((mailbox, number) => [
    ...(number > 0 ? [', '] : []), element('bdi', { text: plain(mailbox) }),
  ])));
  row.append(element('p', { class: 'quiet', text: [host ?? plain(it.endpoint), ...states].join(' · ') }));
  if (it.failing_since) {
    row.append(element('p', { class: 'bad', text: fill(texts.failing, { time: time(it.failing_since) }) }));
  }
  const button = (does, text, label) => element('button', {
    type: 'button', id: `${does}-${it.id}`, text, 'aria-label': fill(label, { name }),
  });
  const test = button('test', texts.test, texts.test_label);
  const remove = button('remove', texts.remove, texts.remove_label);
  test.addEventListener('click', () => run(test, async () => {
    await api(`/v1/subscriptions/${encodeURIComponent(it.id)}/test`, 'POST');
    say(texts.test_sent);
  }));
  remove.addEventListener('click', () => run(remove, () => removeSubscription(it)));
  const actions = element('div', { class: 'actions' });
  if (it.state === 'active') actions.append(test);
  actions.append(remove);
  row.append(actions);
  return row;
}

async function removeSubscription(it) {
  const of = account;
  const isOwn = it.id === own?.id;
  // Those that this browser had before get nothing any more, so they go with its own, confirmed or not.
  const former = isOwn ? (await remembered())[of]?.former ?? [] : [];
  if (!await removeAll(of, [...former, it.id])) return;
  if (isOwn) {
    // Its first push is waited for in vain.
    waiting?.(null);
    const others = await remember(of, null);
    if (others === 0 && hasPush()) {
      await (await (await pushManager()).getSubscription())?.unsubscribe();
    }
  }
  await showSubscriptions();
  showNotifyState();
  say(texts.removed);
  at('all-title').focus();
}

// === The start ===

async function loadTexts() {
  const read = path => fetch(path).then(answer => answer.json());
  [texts, settings] = await Promise.all([read(`/texts/${language()}.json`), read('/settings.json')]);
  document.documentElement.lang = language();
  for (const it of document.querySelectorAll('[data-text]')) it.textContent = texts[it.dataset.text];
}

/** What the service worker says. */
function heard({ data }) {
  if (data?.type === 'confirmed' || data?.type === 'unconfirmed') waiting?.(data.type === 'confirmed');
  if (data?.type === 'open_mail') openMail().catch(complain);
  if (data?.type === 'pushed' && Date.now() - acted < PRESENT) lookAgain(LOOKS);
}

/** Opens the user's mail, as a tap on a notification asks. A page that is loaded again does not open it again. */
async function openMail() {
  if (location.hash === MAIL) history.replaceState(null, '', location.pathname);
  await loaded;
  const link = mailLink(settings);
  if (link !== null) location.assign(link);
}

function followHash() {
  if (location.hash === MAIL) openMail().catch(complain);
}

async function startWorker() {
  if (!('serviceWorker' in navigator)) return;
  // Trusted Types: a worker is started by a policy, and this one knows one worker.
  const url = window.trustedTypes
    ? trustedTypes.createPolicy('mailchime', { createScriptURL: () => '/sw.js' }).createScriptURL('')
    : '/sw.js';
  await navigator.serviceWorker.register(url, { updateViaCache: 'none' });
}

async function start() {
  await loaded;
  await startWorker().catch(error => console.warn(error));
  at('install').hidden = !isPlainTabOfApple();
  at('log-in').querySelector('form').addEventListener('submit', event => {
    event.preventDefault();
    run(event.submitter ?? event.target.querySelector('button'), logIn);
  });
  at('choice').addEventListener('submit', event => {
    event.preventDefault();
    run(at('notify-button'), notify);
  });
  at('filter').addEventListener('input', filterMailboxes);
  at('log-out').addEventListener('click', () => run(at('log-out'), logOut));
  try {
    ({ account } = await api('/v1/session'));
    await showAccount();
  } catch (error) {
    if (error.status === 401) showLogIn();
    else complain(error);
    if (account === null) at('log-in').hidden = false;
  }
}

// At once: what the service worker says before somebody hears it is lost.
navigator.serviceWorker?.addEventListener('message', heard);
// Some browsers open `/#mail` in the page that is there.
window.addEventListener('hashchange', followHash);
document.addEventListener('visibilitychange', cameBack);
for (const act of ['pointerdown', 'keydown']) document.addEventListener(act, () => { acted = Date.now(); });
const loaded = loadTexts();
followHash();
start();
