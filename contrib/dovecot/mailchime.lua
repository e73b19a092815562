-- Tells mailchime which mailboxes have changed, and their numbers after that: Dovecot 2.3.19 and later, and 2.4.
-- Install it as docs/events.md says, and set these two lines. The users that mail is read as must be able to
-- read this file and the token.

local URL = "http://127.0.0.1:8144/v1/events"
local TOKEN_FILE = "/etc/dovecot/mailchime.token"

-- A command of a user and a delivery wait for mailchime's answer, so for no longer than this. After a wait in vain
-- a session leaves mailchime alone for some seconds. mailchime finds what it did not hear when it looks the next
-- time.
local TIMEOUT_MSECS = 500
local PAUSE_SECS = 5

-- In place of a mailbox: any of the user's.
local ANY = {}

local client
local token
local quiet_until = 0
local warned = false

local function first_line(path)
  local file = assert(io.open(path, "r"))
  local line = file:read("*l")
  file:close()
  return assert(line, path .. " is empty"):match("^%s*(.-)%s*$")
end

function script_init()
  if not (dovecot.http and dovecot.http.client) then
    dovecot.i_error("mailchime: this Dovecot has no HTTP client for Lua; it takes 2.3.19 or later")
    return 1
  end
  local read, line = pcall(first_line, TOKEN_FILE)
  if not read then
    dovecot.i_error("mailchime: the token cannot be read: " .. tostring(line))
    return 1
  end
  token = line
  if dovecot.microseconds then -- 2.4, which refuses settings that it does not know
    local time = TIMEOUT_MSECS .. "ms"
    client = dovecot.http.client({
      request_timeout = time, connect_timeout = time, request_max_attempts = "1",
    })
  else
    -- The second time holds for all of it: 2.3 asks with "Expect: 100-continue" and waits two seconds for leave to
    -- go on, before the first one begins.
    client = dovecot.http.client({
      request_timeout_msecs = TIMEOUT_MSECS, request_absolute_timeout_msecs = TIMEOUT_MSECS,
      connect_timeout_msecs = TIMEOUT_MSECS, max_attempts = 1,
    })
  end
  return 0
end

function script_deinit()
end

-- A string of JSON.
local function quote(s)
  local escaped = s:gsub('[%z\1-\31\\"\127]', function(c) return string.format("\\u%04x", c:byte()) end)
  return '"' .. escaped .. '"'
end

function dovecot_lua_notify_begin_txn(user)
  return { user = user, changes = {}, order = {} }
end

local function note(ctx, mailbox, kind)
  local change = ctx.changes[mailbox]
  if not change then
    change = { kinds = {}, list = {} }
    ctx.changes[mailbox] = change
    ctx.order[#ctx.order + 1] = mailbox
  end
  if not change.kinds[kind] then
    change.kinds[kind] = true
    change.list[#change.list + 1] = quote(kind)
  end
end

local function noting(kind)
  return function(ctx, event) note(ctx, event.mailbox, kind) end
end

dovecot_lua_notify_event_message_new = noting("MessageNew")
dovecot_lua_notify_event_message_append = noting("MessageAppend")
dovecot_lua_notify_event_message_expunge = noting("MessageExpunge")
dovecot_lua_notify_event_message_read = noting("MessageRead")
dovecot_lua_notify_event_message_trash = noting("MessageTrash")
dovecot_lua_notify_event_mailbox_create = noting("MailboxCreate")
dovecot_lua_notify_event_mailbox_delete = noting("MailboxDelete")

-- The mailboxes below it get other names, too, and Dovecot does not say which. So this is told of all of the user's
-- as well.
function dovecot_lua_notify_event_mailbox_rename(ctx, event)
  note(ctx, event.mailbox, "MailboxRename")
  note(ctx, ANY, "MailboxRename")
end

-- Dovecot calls this for each change of flags, with an empty list where none was cleared. Phones show these flags;
-- the events of mail that is read and mail that is marked as deleted are their opposites.
function dovecot_lua_notify_event_flags_clear(ctx, event)
  for _, flag in ipairs(event.flags or {}) do
    if flag == "\\Seen" or flag == "\\Deleted" then note(ctx, event.mailbox, "FlagsClear") end
  end
end

-- The numbers of a mailbox as members of an object, or nothing of one that is gone. The mailbox is opened
-- anew: the user's own does not know yet what has just been done.
local function numbers(user, name)
  local S = dovecot.storage
  local box
  local known, s = pcall(function()
    box = user:mailbox(name, S.MAILBOX_FLAG_READONLY)
    box:sync()
    return box:status(
      S.STATUS_MESSAGES, S.STATUS_UIDNEXT, S.STATUS_UIDVALIDITY, S.STATUS_UNSEEN, S.STATUS_HIGHESTMODSEQ)
  end)
  if box then box:free() end
  if not known then return "" end
  return string.format(
    ',"uidvalidity":%d,"uidnext":%d,"messages":%d,"unseen":%d,"highestmodseq":%d',
    s.uidvalidity, s.uidnext, s.messages, s.unseen, s.highest_modseq)
end

local function tell(ctx)
  local changes = {}
  for i, name in ipairs(ctx.order) do
    local change = '"events":[' .. table.concat(ctx.changes[name].list, ",") .. "]"
    if name ~= ANY then change = '"mailbox":' .. quote(name) .. "," .. change .. numbers(ctx.user, name) end
    changes[i] = "{" .. change .. "}"
  end
  local request = client:request({ url = URL, method = "POST" })
  request:add_header("Content-Type", "application/json")
  request:add_header("Authorization", "Bearer " .. token)
  request:set_payload(
    '{"user":' .. quote(ctx.user.username) .. ',"changes":[' .. table.concat(changes, ",") .. "]}")
  local began = os.time()
  local response = request:submit()
  local status = response:status()
  if status < 300 then
    warned = false
    return
  end
  -- From 9000 on Dovecot itself says why there is no answer. A connection that is refused costs nothing.
  if status >= 9000 and status ~= 9003 then quiet_until = began + PAUSE_SECS end
  if not warned then
    warned = true
    dovecot.i_warning("mailchime: " .. URL .. ": " .. status .. " " .. response:reason())
  end
end

function dovecot_lua_notify_end_txn(ctx, success)
  if not success or #ctx.order == 0 or os.time() < quiet_until then return end
  local told, problem = pcall(tell, ctx)
  if not told then dovecot.i_warning("mailchime: " .. tostring(problem)) end
end
