-- Replaces one entry if it is still what the caller saw, keeps the index, and sweeps what has to be forgotten.
--
-- KEYS: the entry, the index. The index is a sorted set of all entries by the moment of their outcome; open intents are
-- at infinity, where no sweep comes.
-- ARGV: what the caller saw ('' for nothing), what is to be there ('' for nothing), the entry's name in the index, its
-- score, its time to live in milliseconds ('' for none), the moment up to which outcomes are past their retention, how
-- many entries are kept, how many are swept at most, what precedes an entry's name in its key.
-- Returns whether it was replaced, what was there, and how many entries there are.
local entry, index = KEYS[1], KEYS[2]
local seen, new, name, score, ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local horizon, most, sweep, prefix = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9]

local current = redis.call('GET', entry) or ''
if current ~= seen then
    return {0, current, redis.call('ZCARD', index)}
end
if new == '' then
    redis.call('DEL', entry)
    redis.call('ZREM', index, name)
else
    if ttl == '' then
        redis.call('SET', entry, new)
    else
        redis.call('SET', entry, new, 'PX', ttl)
    end
    redis.call('ZADD', index, score, name)
end

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
