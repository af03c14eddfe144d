#pragma once
// Numbers that assembler and C++ share: selectors of the GDT, places in low memory.

#define SEL_CODE64 0x08
#define SEL_DATA 0x10
#define SEL_CODE32 0x18
#define SEL_CODE16 0x20
#define SEL_USER_CODE32 0x2b
#define SEL_USER_DATA 0x33
#define SEL_USER_CODE64 0x3b
#define SEL_DATA16 0x40
#define SEL_TSS 0x48    // 64-bit, two entries
#define SEL_TSS32 0x58  // while in 32-bit mode
#define SEL_SPARE 0x60  // to SEL_SPARE + 7 * 8: tests write what they like here
#define GDT_ENTRIES 20

// Where the other CPUs start (SIPI vector 8), and 16-bit code of tests with its results.
#define REAL_DATA 0x6000
#define AP_START 0x8000
#define REAL_ENTRY 0x8800
#define REAL_CODE 0x9000
#define REAL_STACK 0x7000

#define VECTOR_DONE 0x80  // INT 80H: a piece of code at any privilege level has come to its end
#define MAX_CPUS 8
#define CPU_STACK 0x4000
