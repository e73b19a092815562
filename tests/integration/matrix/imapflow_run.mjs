// What imapflow can do, once.
//
// Usage: imapflow_run.mjs FOLDER PORT USER PREFIX
//
// Prints what the client returned, and lines that begin with `note:` on what the server cannot do.
// Each connection's bytes go to FOLDER/<number>.client and FOLDER/<number>.server, as they are inside
// of TLS and of compression. FOLDER holds ca.pem and big.eml. The password comes in the environment.

import { appendFileSync, readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const [folder, port, user, prefix] = process.argv.slice(2);
const { ImapFlow } = createRequire(`${process.env.LIBRARY_FOLDER}/`)('imapflow');
const big = readFileSync(`${folder}/big.eml`);
const copy = `${prefix}Copy`;
// Of a server that sees new mail only when a second has passed since it last looked.
const byTheClock = 'BY_THE_CLOCK' in process.env;
let connections = 0;
// Called with what a server said.
let listen = () => {};

function connection() {
    const number = ++connections;
    const sides = { c: `${folder}/${number}.client`, s: `${folder}/${number}.server` };
    Object.values(sides).forEach(side => writeFileSync(side, ''));
    const record = entry => {
        if (sides[entry?.src] && entry.data) {
            const data = Buffer.from(entry.data, 'base64');
            appendFileSync(sides[entry.src], data);
            if (entry.src === 's') listen(number, data.toString('latin1'));
        }
    };
    const nothing = () => {};
    return new ImapFlow({
        host: 'localhost',
        port: Number(port),
        secure: true,
        tls: { ca: readFileSync(`${folder}/ca.pem`) },
        auth: { user, pass: process.env.PASSWORD },
        logRaw: true,
        logger: { trace: record, debug: nothing, info: nothing, warn: nothing, error: nothing },
        disableAutoIdle: true
    });
}

function show(what, result) {
    const plain = (key, value) => {
        if (typeof value === 'bigint') return String(value);
        if (value instanceof Set) return [...value].sort();
        if (value instanceof Map) return [...value];
        if (value?.type === 'Buffer') return Buffer.from(value.data).toString('latin1');
        return value;
    };
    console.log(`${what}: ${JSON.stringify(result, plain)}`);
}

const client = connection();
await client.connect();
for (const [capability, note] of [
    ['ID', 'no ID'],
    ['LITERAL+', 'no LITERAL+'],
    ['UIDPLUS', 'no UIDPLUS'],
    ['MOVE', 'no MOVE: COPY + EXPUNGE']
]) {
    if (!client.capabilities.has(capability)) console.log(`note: ${note}`);
}
show('server', client.serverInfo?.name ?? null);
const listed = await client.list();
show('list', listed.map(it => [it.path, it.delimiter, it.flags, it.specialUse, it.subscribed]));
const lock = await client.getMailboxLock('INBOX');
show('select', [client.mailbox.exists, client.mailbox.uidNext, client.mailbox.flags]);
const all = [];
for await (const it of client.fetch('1:3', { flags: true, size: true, envelope: true, bodyStructure: true, source: true })) {
    all.push([it.seq, it.uid, it.flags, it.size, it.envelope, it.bodyStructure, it.source]);
}
show('fetch', all);
const { content } = await client.download('2', '1');
let text = '';
for await (const chunk of content) text += chunk;
show('download', text);
if (byTheClock) await new Promise(resolve => setTimeout(resolve, 1100));
const appended = await client.append('INBOX', big, ['\\Flagged']);
show('append', [appended.destination, appended.uid ?? null, appended.seq ?? null]);
await client.noop();
const fetched = await client.fetchOne('4', { source: true, flags: true });
show('the same as appended', [fetched.source.equals(big), fetched.flags]);
show('search', await client.search({ subject: 'needle' }));
show('search larger', await client.search({ seen: false, larger: 1000000 }, { uid: true }));
show('store', await client.messageFlagsAdd('1:2', ['\\Seen', '\\Answered']));
show('create', (await client.mailboxCreate(copy)).created);
const copied = await client.messageCopy('1', copy);
show('copy', [copied.destination, copied.uidMap ?? null]);
const moved = await client.messageMove('2', copy);
show('move', [moved.destination, moved.uidMap ?? null]);
const status = await client.status(copy, { messages: true, unseen: true });
show('status', [status.messages, status.unseen]);
if (client.capabilities.has('IDLE')) {
    const other = connection();
    await other.connect();
    let timer;
    const told = new Promise(resolve => {
        client.once('exists', it => resolve(it.count));
        timer = setTimeout(() => resolve(null), byTheClock ? 3000 : 120000);
    });
    const begun = new Promise(resolve => {
        listen = (number, said) => number === 1 && /^\+ /m.test(said) && resolve();
    });
    const idle = client.idle();
    await begun;
    // Cyrus says nothing of what comes while it begins.
    await new Promise(resolve => setTimeout(resolve, 2000));
    await other.append('INBOX', 'Message-ID: <5@matrix.example.org>\r\nSubject: news\r\n\r\nNews.\r\n');
    const count = await told;
    clearTimeout(timer);
    if (count === null) console.log('note: IDLE is silent');
    else show('told in idle', count);
    await client.noop();
    await idle;
    await other.logout();
} else {
    console.log('note: no IDLE');
}
lock.release();
await client.logout();
