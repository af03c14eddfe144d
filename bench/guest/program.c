/* What programs are made of rather than loops: text, memory from malloc, calls from function to function,
 * pages that the kernel put anywhere. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

/* A parser of JSON. */
enum { kItems = 400, kParses = 10 };
static char json[40000];
static const char* at;
static uint64_t parsed;

static void write_json(void) {
  char* to = json;
  uint32_t random = 1;
  *to++ = '[';
  for (int i = 0; i < kItems; i++) {
    to += sprintf(to, "%s{\"id\": %u, \"name\": \"item %d\", \"list\": [1, 2.5, %u, true, null]}",
                  i ? ", " : "", next_random(&random) % 100000, i, next_random(&random) % 1000);
  }
  strcpy(to, "]");
}

static void skip_spaces(void) {
  while (*at == ' ') at++;
}

static void parse_string(void) {
  char* copy = malloc(32);
  size_t length = 0;
  for (at++; *at != '"'; at++) copy[length++] = *at;
  at++;
  copy[length] = 0;
  parsed += length + (uint64_t)copy[length / 2];
  free(copy);
}

static void parse_value(void);

static void parse_members(char end, bool named) {
  at++;
  for (skip_spaces(); *at != end; skip_spaces()) {
    if (named) {
      parse_string();
      at++;
    }
    parse_value();
    skip_spaces();
    if (*at == ',') at++;
  }
  at++;
}

static void parse_value(void) {
  skip_spaces();
  switch (*at) {
    case '[':
      return parse_members(']', false);
    case '{':
      return parse_members('}', true);
    case '"':
      return parse_string();
    case 't':
    case 'n':
      at += 4;
      parsed++;
      return;
    default: {
      char* end;
      parsed += (uint64_t)strtod(at, &end);
      at = end;
    }
  }
}

static uint64_t run_json(void) {
  parsed = 0;
  for (int i = 0; i < kParses; i++) {
    at = json;
    parse_value();
  }
  return parsed;
}

/* The C library's formatting. */
enum { kLines = 10000 };

static uint64_t run_format(void) {
  char line[200];
  uint64_t sum = 0;
  for (int i = 0; i < kLines; i++) {
    const int length = snprintf(line, sizeof line, "%d: %s %08x %-10s|%5.2f %lu\n", i, "some",
                                (unsigned)i * 77, "words", i / 7.0, (unsigned long)i * (unsigned long)i);
    sum += (uint64_t)length + (uint64_t)line[length / 2];
  }
  return sum;
}

/* Its string functions, which use the widest registers at any address. */
enum { kText = 65536, kCopies = 50 };
static char text[kText], copies[kText];

static void write_text(void) {
  uint32_t random = 1;
  for (int i = 0; i < kText; i++) text[i] = (char)('a' + next_random(&random) % 26);
  for (uint32_t i = 0; i < kText; i += 7 + next_random(&random) % 40) text[i] = 0;
  text[kText - 1] = 0;
}

static uint64_t run_strings(void) {
  uint64_t sum = 0;
  for (int i = 0; i < kCopies; i++) {
    for (const char* string = text; string < text + kText;) {
      const size_t length = strlen(string);
      memcpy(copies + (string - text), string, length + 1);
      sum += length * (uint64_t)i + (strcmp(string, copies) > 0);
      string += length + 1;
    }
  }
  return sum + (uint64_t)copies[777];
}

/* A binary tree: inserts, walks, and memory given back. */
struct node {
  struct node *left, *right;
  uint32_t key;
};
enum { kNodes = 10000, kWalks = 5 };

static struct node* insert(struct node* tree, uint32_t key) {
  if (!tree) {
    tree = calloc(1, sizeof *tree);
    tree->key = key;
  } else if (key < tree->key) {
    tree->left = insert(tree->left, key);
  } else {
    tree->right = insert(tree->right, key);
  }
  return tree;
}

static uint64_t walk(const struct node* tree, uint64_t depth) {
  return tree ? walk(tree->left, depth + 1) + tree->key * depth + walk(tree->right, depth + 1) : 0;
}

static void drop(struct node* tree) {
  if (!tree) return;
  drop(tree->left);
  drop(tree->right);
  free(tree);
}

static uint64_t run_tree(void) {
  uint32_t random = 5;
  struct node* tree = NULL;
  for (int i = 0; i < kNodes; i++) tree = insert(tree, next_random(&random));
  uint64_t sum = 0;
  for (int i = 0; i < kWalks; i++) sum += walk(tree, 1);
  drop(tree);
  return sum;
}

const struct workload program_workloads[] = {
    {"json", "program", kItems* kParses, run_json, write_json, NULL},
    {"format", "program", kLines, run_format, NULL, NULL},
    {"strings", "program", kText* kCopies, run_strings, write_text, NULL},
    {"tree", "program", kNodes, run_tree, NULL, NULL},
    {0},
};
