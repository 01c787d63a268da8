/* Says which vector instructions are legal: reads records of vtype, vstart and instruction, writes a byte for each. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <ucontext.h>

struct record {
    uint64_t vtype;
    uint32_t vstart;
    uint32_t insn;
};

static volatile char illegal;
static char data[1 << 16];

static void handler(int signal, siginfo_t *info, void *context)
{
    illegal |= signal == SIGILL;
    ((ucontext_t *)context)->uc_mcontext.__gregs[REG_PC] += 4;
}

int main(void)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &action, 0);
    sigaction(SIGSEGV, &action, 0);
    sigaction(SIGBUS, &action, 0);
    uint32_t *code = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct record r;
    code[1] = 0x00008067; /* ret */
    while (fread(&r, sizeof r, 1, stdin) == 1) {
        code[0] = r.insn;
        asm volatile("fence.i" ::: "memory");
        register uint64_t vtype asm("a2") = r.vtype;
        register uint64_t vstart asm("a3") = r.vstart;
        register char *base asm("a1") = data + sizeof data / 2;
        register uint32_t *at asm("a4") = code;
        illegal = 0;
        asm volatile(".option push\n.option arch, +v\n"
                     "li t0, -1\nvsetvli x0, t0, e8, m8, ta, ma\n" /* Indices in memory are 0. */
                     "vmv.v.i v0, 0\nvmv.v.i v8, 0\nvmv.v.i v16, 0\nvmv.v.i v24, 0\n"
                     "li t0, 1\nvsetvl x0, t0, a2\n.option pop\n"
                     "csrw 8, a3\njalr ra, 0(a4)\ncsrwi 8, 0"
                     :
                     : "r"(vtype), "r"(vstart), "r"(base), "r"(at)
                     : "ra", "a0", "t0", "memory");
        putchar(illegal);
    }
    return 0;
}
