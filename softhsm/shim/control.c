/* The control file and the log of calls; softhsm/README.md has their language. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

#define MAX_RULES 64
#define UNKNOWN_CLASS (~0UL)

enum action { RETURN, DELAY, FLIP, ABORT, EXIT, KILL };
static const char *const ACTIONS[] = {"return", "delay", "flip", "abort", "exit", "kill"};

struct rule {
  char function[32]; /* "*": every function */
  enum action action;
  unsigned long argument; /* the code to return, or milliseconds */
  unsigned long mechanism;
  bool any_mechanism;
  bool late; /* after the real call, whose effect stays */
  unsigned long from, times; /* times 0: without end */
  double chance;
  unsigned long seen, done;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards all down to the log */
static struct rule rules[MAX_RULES];
static unsigned rule_count;
static bool exact = true;
static uint64_t random_state;
static struct stat read_state;
static unsigned long readings; /* how often the control file was read */

/* A mistake in a test's control file must not look like a test that passes. */
static void refuse(const char *path, const char *line) {
  fprintf(stderr, "PKCS#11 shim: %s: this line is not understood: %s\n", path, line);
  abort();
}

static unsigned long number(const char *path, const char *line, const char *text) {
  char *end;
  errno = 0;
  unsigned long value = strtoul(text, &end, 0);
  if (errno || *text == '\0' || *end != '\0') refuse(path, line);
  return value;
}

static void read_option(const char *path, const char *line, struct rule *rule, const char *word) {
  if (strcmp(word, "late") == 0)
    rule->late = true;
  else if (strncmp(word, "from=", 5) == 0)
    rule->from = number(path, line, word + 5);
  else if (strncmp(word, "times=", 6) == 0)
    rule->times = number(path, line, word + 6);
  else if (strncmp(word, "mechanism=", 10) == 0)
    rule->mechanism = number(path, line, word + 10), rule->any_mechanism = false;
  else if (strncmp(word, "chance=", 7) == 0)
    rule->chance = (double)number(path, line, word + 7) / 1000;
  else
    refuse(path, line);
}

static void read_rule(const char *path, const char *line, const char *function, char **rest) {
  const char *word = strtok_r(NULL, " \t", rest);
  struct rule *rule = &rules[rule_count];
  if (word == NULL || rule_count == MAX_RULES || strlen(function) >= sizeof rule->function) refuse(path, line);
  *rule = (struct rule){.any_mechanism = true, .from = 1, .chance = 1};
  strcpy(rule->function, function);
  while (strcmp(word, ACTIONS[rule->action]) != 0)
    if (++rule->action > KILL) refuse(path, line);
  if (rule->action == RETURN || rule->action == DELAY) {
    if ((word = strtok_r(NULL, " \t", rest)) == NULL) refuse(path, line);
    rule->argument = number(path, line, word);
  }
  while ((word = strtok_r(NULL, " \t", rest)) != NULL) read_option(path, line, rule, word);
  rule->late = rule->late || rule->action == FLIP;
  rule_count++;
}

static void read_line(const char *path, char *line) {
  char whole[256], *rest = NULL;
  snprintf(whole, sizeof whole, "%s", line);
  const char *first = strtok_r(line, " \t", &rest);
  if (first == NULL || *first == '#') return;
  if (strcmp(first, "seed") == 0 || strcmp(first, "exact") == 0) {
    const char *value = strtok_r(NULL, " \t", &rest);
    if (value == NULL) refuse(path, whole);
    if (*first == 's')
      random_state = number(path, whole, value);
    else
      exact = strcmp(value, "off") != 0;
  } else {
    read_rule(path, whole, first, &rest);
  }
}

/* Read the control file if it is another one than last time. Hold the lock. */
static void refresh(void) {
  const char *path = getenv("PKCS11_SHIM_CONTROL");
  struct stat now;
  if (path == NULL) return;
  if (stat(path, &now) != 0) memset(&now, 0, sizeof now);
  if (now.st_ino == read_state.st_ino && now.st_size == read_state.st_size &&
      now.st_mtim.tv_sec == read_state.st_mtim.tv_sec && now.st_mtim.tv_nsec == read_state.st_mtim.tv_nsec)
    return;
  read_state = now;
  readings++;
  rule_count = 0;
  exact = true;
  random_state = 0;
  FILE *file = fopen(path, "re");
  if (file == NULL) return;
  char line[256];
  while (fgets(line, sizeof line, file) != NULL) {
    line[strcspn(line, "\n")] = '\0';
    read_line(path, line);
  }
  fclose(file);
}

/* A number in [0, 1), the same sequence for the same seed (splitmix64). */
static double draw(void) {
  uint64_t z = (random_state += 0x9E3779B97F4A7C15U);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
  return (double)((z ^ (z >> 31)) >> 11) / (double)(1ULL << 53);
}

static bool fires(struct rule *rule, const struct call *call, bool late) {
  if (rule->late != late) return false;
  if (strcmp(rule->function, "*") != 0 && strcmp(rule->function, call->function) != 0) return false;
  if (!rule->any_mechanism && (call->mechanism == NULL || call->mechanism->mechanism != rule->mechanism)) return false;
  if (++rule->seen < rule->from || (rule->times && rule->done == rule->times)) return false;
  if (rule->chance < 1 && draw() >= rule->chance) return false;
  rule->done++;
  return true;
}

/* Wait so long, or until the control file is another one: a test ends a hanging call so. */
static void wait_for(unsigned long milliseconds, unsigned long reading) {
  const struct timespec pause = {0, 10 * 1000000};
  for (unsigned long waited = 0; waited < milliseconds && reading == readings; waited += 10) {
    pthread_mutex_unlock(&lock);
    nanosleep(&pause, NULL);
    pthread_mutex_lock(&lock);
    refresh();
  }
}

/* Returns true when a rule chose the code. */
static bool obey(struct call *call, bool late, ck_rv_t *code) {
  unsigned long milliseconds = 0;
  bool chosen = false;
  pthread_mutex_lock(&lock);
  refresh();
  const unsigned long reading = readings;
  for (unsigned i = 0; i < rule_count && !chosen; i++) {
    struct rule *rule = &rules[i];
    if (!fires(rule, call, late)) continue;
    if (rule->action == RETURN) *code = rule->argument, chosen = true;
    if (rule->action == DELAY) milliseconds += rule->argument;
    if (rule->action == FLIP && *code == CKR_OK && call->output != NULL && *call->output_length > 0)
      call->output[*call->output_length / 2] ^= 1;
    if (rule->action == ABORT) abort();
    if (rule->action == EXIT) _exit(70);
    if (rule->action == KILL) raise(SIGKILL);
  }
  wait_for(milliseconds, reading);
  pthread_mutex_unlock(&lock);
  return chosen;
}

bool exact_wrap_wanted(void) {
  pthread_mutex_lock(&lock);
  refresh();
  bool wanted = exact;
  pthread_mutex_unlock(&lock);
  return wanted;
}

/* ---- the log: one JSON object a line ---- */

struct text {
  char bytes[4096];
  size_t length;
};

__attribute__((format(printf, 2, 3))) static void add(struct text *text, const char *format, ...) {
  size_t room = sizeof text->bytes - text->length;
  va_list arguments;
  va_start(arguments, format);
  int wrote = vsnprintf(text->bytes + text->length, room, format, arguments);
  va_end(arguments);
  if (wrote < 0 || (size_t)wrote >= room) abort(); /* a log with a gap would prove what is not so */
  text->length += (size_t)wrote;
}

/* Flags and the class say what a key may do; no other attribute's value is ever written. */
static void add_attribute(struct text *text, const struct ck_attribute *attribute, bool given) {
  static const ck_attribute_type_t FLAGS[] = {
      CKA_TOKEN,  CKA_PRIVATE, CKA_SENSITIVE, CKA_EXTRACTABLE, CKA_ENCRYPT, CKA_DECRYPT,  CKA_WRAP,
      CKA_UNWRAP, CKA_SIGN,    CKA_VERIFY,    CKA_DERIVE,      CKA_LOCAL,   CKA_MODIFIABLE};
  add(text, "[%lu,", attribute->type);
  if (given && attribute->value != NULL) {
    if (attribute->type == CKA_CLASS && attribute->value_len == sizeof(ck_object_class_t)) {
      add(text, "%lu]", *(const ck_object_class_t *)attribute->value);
      return;
    }
    for (size_t i = 0; i < sizeof FLAGS / sizeof *FLAGS; i++)
      if (attribute->type == FLAGS[i] && attribute->value_len == 1) {
        add(text, "%s]", *(const unsigned char *)attribute->value ? "true" : "false");
        return;
      }
  }
  add(text, "null]");
}

static void add_templates(struct text *text, const struct call *call) {
  bool given = strcmp(call->function, "C_GetAttributeValue") != 0; /* there the values are the answer */
  add(text, ",\"templates\":[");
  for (int i = 0; i < 2 && call->templates[i] != NULL; i++) {
    add(text, "%s[", i ? "," : "");
    for (unsigned long j = 0; j < call->counts[i]; j++) {
      add(text, "%s", j ? "," : "");
      add_attribute(text, &call->templates[i][j], given);
    }
    add(text, "]");
  }
  add(text, "]");
}

/* What was made is told also when a rule has kept it from the caller. */
static void write_log(const char *path, const struct call *call, ck_rv_t code, bool worked) {
  struct text text = {.length = 0};
  add(&text, "{\"process\":%d,\"function\":\"%s\",\"code\":%lu,\"injected\":%s", (int)getpid(), call->function, code,
      call->injected ? "true" : "false");
  add(&text, ",\"session\":%lu,\"mechanism\":", call->session);
  if (call->mechanism != NULL)
    add(&text, "%lu", call->mechanism->mechanism);
  else
    add(&text, "null");
  add(&text, ",\"objects\":[");
  for (int i = 0; i < 2 && call->objects[i] != 0; i++) {
    add(&text, "%s[%lu,", i ? "," : "", call->objects[i]);
    if (call->classes[i] == UNKNOWN_CLASS)
      add(&text, "null]");
    else
      add(&text, "%lu]", call->classes[i]);
  }
  add(&text, "],\"made\":[");
  for (int i = 0; i < 2 && call->made[i] != NULL && worked; i++)
    add(&text, "%s%lu", i ? "," : "", *call->made[i]);
  add(&text, "]");
  add_templates(&text, call);
  add(&text, "}\n");
  int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (file < 0 || write(file, text.bytes, text.length) != (ssize_t)text.length) {
    fprintf(stderr, "PKCS#11 shim: cannot write the log %s\n", path);
    abort();
  }
  close(file);
}

bool call_begins(struct call *call, ck_rv_t *code) {
  const struct ck_function_list *real = real_module();
  if (getenv("PKCS11_SHIM_LOG") != NULL)
    for (int i = 0; i < 2 && call->objects[i] != 0; i++) {
      struct ck_attribute asked = {CKA_CLASS, &call->classes[i], sizeof call->classes[i]};
      if (real == NULL || real->C_GetAttributeValue(call->session, call->objects[i], &asked, 1) != CKR_OK)
        call->classes[i] = UNKNOWN_CLASS;
    }
  *code = CKR_GENERAL_ERROR;
  if (real == NULL) return false;
  call->injected = obey(call, false, code);
  return !call->injected;
}

ck_rv_t call_ends(struct call *call, ck_rv_t code) {
  const char *path = getenv("PKCS11_SHIM_LOG");
  bool worked = code == CKR_OK && !call->injected;
  if (!call->injected) call->injected = obey(call, true, &code);
  if (path != NULL && *path != '\0') write_log(path, call, code, worked);
  return code;
}
