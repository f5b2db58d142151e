-- Replaces one entry, if it is still what the caller saw; updates the index; forgets old entries.
--
-- KEYS: the entry; the index; the hash with what the ledger knows about itself. The index is a sorted set of all entries. The
-- score is the time of the last change, and infinity for an entry with an open claim, which is never forgotten.
-- ARGV: the ledger's id; the entry that the caller saw ('' for none); the new entry; its name in the index; its score; its time to
-- live in milliseconds ('' for none); the time up to which entries are forgotten; how many entries are kept; the most entries that
-- one call forgets; the prefix of an entry's key; the ledger's epoch ('' for any).
-- Returns 1 if it was replaced, 0 if the entry had changed, -1 if this is another ledger or epoch; the entry that was there; the
-- number of entries.
local entry, index, about = KEYS[1], KEYS[2], KEYS[3]
local id, seen, new, name, score, ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local horizon, most, sweep, prefix = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10]

if redis.call('HGET', about, 'id') ~= id or (ARGV[11] ~= '' and redis.call('HGET', about, 'epoch') ~= ARGV[11]) then
    return {-1, '', 0}
end
local current = redis.call('GET', entry) or ''
if current ~= seen then
    return {0, current, redis.call('ZCARD', index)}
end
if ttl == '' then
    redis.call('SET', entry, new)
else
    redis.call('SET', entry, new, 'PX', ttl)
end
redis.call('ZADD', index, score, name)

local excess = redis.call('ZCARD', index) - most
local oldest = redis.call('ZRANGE', index, 0, sweep, 'WITHSCORES')
local swept = 0
for i = 1, #oldest, 2 do
    local other, at = oldest[i], oldest[i + 1]
    if other ~= name then
        if at == 'inf' or swept == sweep or (swept >= excess and tonumber(at) > horizon) then
            break
        end
        redis.call('DEL', prefix .. other)
        redis.call('ZREM', index, other)
        swept = swept + 1
    end
end
return {1, current, redis.call('ZCARD', index)}
