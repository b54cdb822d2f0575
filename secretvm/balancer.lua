-- The two strategies that HAProxy has not itself, as fetches for `use-server %[lua.NAME(PROXY)]`.
-- Each answers with the name of a server, or "" to leave the choice to the proxy's own balance.

-- The servers that may be chosen now: up, or up until the first check says otherwise.
local function usable(proxy)
  local found = {}
  for name, server in pairs(core.proxies[proxy].servers) do
    local stats = server:get_stats()
    if string.sub(stats.status, 1, 2) == "UP" and stats.weight > 0 then
      found[name] = stats
    end
  end
  return found
end

-- FNV-1a, and the last steps of MurmurHash3: the bits of short, similar texts must differ everywhere.
local function hash(text)
  local h = 0xcbf29ce484222325
  for i = 1, #text do
    h = (h ~ string.byte(text, i)) * 0x100000001b3
  end
  h = (h ~ (h >> 33)) * 0xff51afd7ed558ccd
  h = (h ~ (h >> 33)) * 0xc4ceb9fe1a85ec53
  return h ~ (h >> 33)
end

-- A number between 0 and 1, neither of them.
local function share(text)
  return ((hash(text) >> 11) + 0.5) / 2.0 ^ 53
end

-- Rendezvous hashing of the client's address: who loses a server moves, and nobody else.
-- Source: Thaler and Ravishankar, 1998; the weights of Schindelhauer and Schomaker, 2005.
core.register_fetches("hrw", function(txn, proxy)
  local client, best, most = tostring(txn.f:src()), "", -1
  for name, stats in pairs(usable(proxy)) do
    local score = -stats.weight / math.log(share(client .. " " .. name))
    if score > most then
      best, most = name, score
    end
  end
  return best
end)

-- The server whose next answer is expected first: its time to the first byte, for all that wait there.
core.register_fetches("leasttime", function(txn, proxy)
  local best, least = "", math.huge
  for name, stats in pairs(usable(proxy)) do
    local expected = ((stats.rtime or 0) + 1) * (stats.scur + 1) / stats.weight
    if expected < least or (expected == least and name < best) then
      best, least = name, expected
    end
  end
  return best
end)
