-- Calls, tables, sorting, strings and floating point.
local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end
local sum = fib(27)
local t = {}
for i = 1, 120000 do t[i] = (i * 7919) % 65537 end
table.sort(t)
local words = {}
for i = 1, #t, 3 do
  local key = string.format("%x", t[i] % 4096)
  words[key] = (words[key] or 0) + 1
end
local count, x = 0, 0.0
for key, n in pairs(words) do count = count + #key * n end
for i = 1, 600000 do x = x + math.sin(i) * math.sqrt(i) end
print(sum, t[100], count, string.format("%.9f", x))
