/* A PKCS#11 module for development and tests: it forwards every call to a real module and adds to it what README.md of
 * the folder above says. Never a part of the product.
 */
#ifndef SHIM_H
#define SHIM_H

#define CRYPTOKI_GNU 1
#include <p11-kit/pkcs11.h>
#include <stdbool.h>

/* What may be told of one call: never a PIN, never an attribute's value that could be a secret. */
struct call {
  const char *function;
  ck_session_handle_t session;           /* 0: the function has none */
  const struct ck_mechanism *mechanism;  /* NULL: none */
  ck_object_handle_t objects[2];         /* 0: none */
  const struct ck_attribute *templates[2];
  unsigned long counts[2];               /* attributes in each template */
  const ck_object_handle_t *made[2];     /* handles that the call fills in */
  unsigned char *output;                 /* bytes that the call fills in; NULL: none */
  const unsigned long *output_length;    /* how many, after the call */
  unsigned long classes[2];              /* of the objects, for the log; filled in by call_begins */
  bool injected;                         /* the code comes from the control file */
};

/* The real module's functions; NULL when it cannot be loaded, which standard error then explains. */
const struct ck_function_list *real_module(void);

/* Obey the rules for before the call. False: do not forward it, *code is the answer. */
bool call_begins(struct call *call, ck_rv_t *code);

/* Obey the rules for after the call, write it to the log and return the code for the caller. */
ck_rv_t call_ends(struct call *call, ck_rv_t code);

/* False when the control file says "exact off". */
bool exact_wrap_wanted(void);

/* Replace a key blob that the real module made by CKM_AES_KEY_WRAP_PAD with one that follows RFC 5649, which has the
 * same length. On any failure the blob is wiped. The caller keeps other threads from making or searching objects.
 */
ck_rv_t exact_wrap(const struct ck_function_list *real, ck_session_handle_t session, ck_object_handle_t wrapping_key,
                   ck_object_handle_t key, unsigned char *blob, unsigned long length);

#endif
