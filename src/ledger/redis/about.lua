-- Replaces what the ledger knows about itself, if it is still what the caller saw.
--
-- KEYS: the hash with what the ledger knows about itself.
-- ARGV: the id, proves_unsent, other_owner, epoch and identities that the caller saw; the new values of these five; the server's
-- replication id ('' to keep the stored one).
-- Returns 1 if it was replaced, 0 if another worker has changed it.
local names = {'id', 'proves_unsent', 'other_owner', 'epoch', 'identities'}
local defaults = {'', '0', '0', '0', ''}
local there = redis.call('HMGET', KEYS[1], unpack(names))
for i = 1, #names do
    if (there[i] or defaults[i]) ~= ARGV[i] then
        return 0
    end
end
for i = 1, #names do
    redis.call('HSET', KEYS[1], names[i], ARGV[#names + i])
end
if ARGV[2 * #names + 1] ~= '' then
    redis.call('HSET', KEYS[1], 'replication', ARGV[2 * #names + 1])
end
return 1
