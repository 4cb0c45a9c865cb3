/* Intel AMX's int8 instructions by trap and emulation, for a processor (x86-64, Linux) that has none.

   Preloaded, it answers the signal that such an instruction raises: decodes it, does what it says, and goes on behind
   it. So the machine code of the real kernels runs, with the registers, strides and places that were encoded. It also
   grants the permission to use the registers. Whatever a processor would refuse is refused: the program ends.
   After the Software Developer's Manual, volume 2. */

#define _GNU_SOURCE
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <ucontext.h>
#include <unistd.h>

enum { LDTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILESTORED, TDPBSSD, OPERATIONS };
long tile_operations[OPERATIONS];

static __thread uint8_t tiles[8][16][64];
static __thread struct { uint8_t palette, start_row, reserved[14]; uint16_t columns[16]; uint8_t rows[16]; } config;

static const int registers[16] = {
    REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
    REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
};

static void refuse(const char *why) {
    (void)!write(2, why, strlen(why));
    (void)!write(2, "\n", 1);
    signal(SIGILL, SIG_DFL);
    raise(SIGILL);
    _exit(70);
}

static void must(int condition, const char *why) {
    if (!condition) refuse(why);
}

static void configure(const void *address) {
    memcpy(&config, address, sizeof config);
    must(config.palette == 1, "the palette is not 1");
    must(config.start_row == 0, "a row to start at");
    for (int i = 0; i < 14; i++) must(config.reserved[i] == 0, "reserved bytes are not zero");
    for (int i = 0; i < 16; i++) {
        must(config.columns[i] <= 64 && config.rows[i] <= 16, "a tile is too large");
        must(!config.columns[i] == !config.rows[i], "a tile has rows or columns alone");
        must(i < 8 || !config.rows[i], "there is no such tile");
    }
    memset(tiles, 0, sizeof tiles);
}

static void dot(int total, int left, int right) {
    must(total != left && total != right && left != right, "registers are not three");
    must(config.columns[left] % 4 == 0 && config.columns[total] % 4 == 0, "columns that are no quads");
    must(config.rows[total] == config.rows[left], "rows do not match");
    must(config.columns[total] == config.columns[right], "columns do not match");
    must(config.columns[left] / 4 == config.rows[right], "the sum's lengths do not match");
    for (int m = 0; m < config.rows[total]; m++)
        for (int n = 0; n < config.columns[total] / 4; n++) {
            int32_t sum;
            memcpy(&sum, &tiles[total][m][4 * n], 4);
            for (int k = 0; k < config.rows[right]; k++)
                for (int j = 0; j < 4; j++)
                    sum += (int8_t)tiles[left][m][4 * k + j] * (int8_t)tiles[right][k][4 * n + j];
            memcpy(&tiles[total][m][4 * n], &sum, 4);
        }
}

static void on_illegal(int number, siginfo_t *info, void *context) {
    (void)number, (void)info;
    greg_t *gregs = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *code = (const uint8_t *)gregs[REG_RIP], *p = code;
    must(p[0] == 0xC4 && (p[1] & 0x1F) == 2, "an illegal instruction of another kind");
    int high_reg = !(p[1] & 0x80), high_index = !(p[1] & 0x40), high_base = !(p[1] & 0x20);
    int wide = p[2] & 0x80, third = ~p[2] >> 3 & 15, vector = p[2] & 4, prefix = p[2] & 3, opcode = p[3], modrm = p[4];
    int mod = modrm >> 6, reg = modrm >> 3 & 7, rm = modrm & 7;
    must(!wide && !vector && !high_reg && third < 8, "an instruction that is not for tiles");
    p += 5;
    intptr_t base = 0, stride = 0;
    if (mod != 3) {
        int number_of_base = rm;
        must(rm == 4 || opcode == 0x49, "tiles are addressed with a base and an index");
        if (rm == 4) {
            int sib = *p++, index = (sib >> 3 & 7) + 8 * high_index;
            number_of_base = sib & 7;
            if (index != 4) stride = gregs[registers[index]] << (sib >> 6);
        }
        if (mod == 0 && number_of_base == 5) {
            int32_t offset;
            memcpy(&offset, p, 4), p += 4;
            base = rm == 4 ? offset : (intptr_t)p + offset;
        } else {
            base = gregs[registers[number_of_base + 8 * high_base]];
            int32_t offset = 0;
            if (mod == 1) offset = (int8_t)*p++;
            if (mod == 2) memcpy(&offset, p, 4), p += 4;
            base += offset;
        }
        if (opcode == 0x49) base += stride, stride = 0;
    }
    int operation = -1;
    if (opcode == 0x49 && prefix == 0 && mod != 3 && reg == 0) operation = LDTILECFG;
    if (opcode == 0x49 && prefix == 0 && modrm == 0xC0) operation = TILERELEASE;
    if (opcode == 0x49 && prefix == 3 && mod == 3 && rm == 0) operation = TILEZERO;
    if (opcode == 0x4B && prefix == 3 && mod != 3) operation = TILELOADD;
    if (opcode == 0x4B && prefix == 2 && mod != 3) operation = TILESTORED;
    if (opcode == 0x5E && prefix == 3 && mod == 3 && !high_base) operation = TDPBSSD;
    must(operation >= 0, "an instruction that is not known here");
    must(operation == LDTILECFG || operation == TILERELEASE || config.palette == 1, "tiles are not configured");
    switch (operation) {
    case LDTILECFG: configure((const void *)base); break;
    case TILERELEASE: memset(&config, 0, sizeof config); break;
    case TILEZERO: memset(tiles[reg], 0, sizeof tiles[reg]); break;
    case TILELOADD:
        memset(tiles[reg], 0, sizeof tiles[reg]);
        for (int r = 0; r < config.rows[reg]; r++)
            memcpy(tiles[reg][r], (const void *)(base + r * stride), config.columns[reg]);
        break;
    case TILESTORED:
        for (int r = 0; r < config.rows[reg]; r++)
            memcpy((void *)(base + r * stride), tiles[reg][r], config.columns[reg]);
        break;
    case TDPBSSD: dot(reg, rm, third); break;
    }
    __atomic_add_fetch(&tile_operations[operation], 1, __ATOMIC_RELAXED);
    gregs[REG_RIP] = (greg_t)p;
}

long syscall(long number, ...) {
    long a[6], result;
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    if (number == 158 && a[0] == 0x1023 && a[1] == 18) return 0;
    register long r10 __asm__("r10") = a[3], r8 __asm__("r8") = a[4], r9 __asm__("r9") = a[5];
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    if (result < 0 && result > -4096) {
        extern int *__errno_location(void);
        *__errno_location() = (int)-result;
        return -1;
    }
    return result;
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction action = {.sa_sigaction = on_illegal, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &action, NULL);
}
