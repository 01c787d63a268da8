"""Dictionaries, JSON, regular expressions, a sieve and big integers."""
import hashlib, json, re
rows = [{"id": i, "name": f"row {i * 7919 % 10007}", "v": i / 7} for i in range(8000)]
text = json.dumps(sorted(rows, key=lambda r: r["name"]))
back = json.loads(text)
words = {}
for m in re.finditer(r"row (\d+)", text):
    words[m[1]] = words.get(m[1], 0) + 1
n, primes = 40000, []
sieve = bytearray([1]) * n
for i in range(2, n):
    if sieve[i]:
        primes.append(i)
        for j in range(i * i, n, i):
            sieve[j] = 0
print(len(words), sum(primes), sum(r["id"] for r in back), hashlib.md5(text.encode()).hexdigest())
print(pow(3, 10**4000 + 7, 10**300 + 7) % 1000003)
