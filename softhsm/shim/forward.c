/* Every PKCS#11 function: passed on to the real module, between the rules and the log of control.c. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shim.h"

/* SoftHSM 2.6.1 races the making of objects against their search. The broker keeps those apart by a lock of its own,
 * which cannot know of the objects that an exact wrap makes, so here is another.
 */
static pthread_mutex_t objects = PTHREAD_MUTEX_INITIALIZER;

static const struct ck_function_list *real;

static void load(void) {
  const char *path = getenv("PKCS11_SHIM_MODULE");
  struct ck_function_list *list = NULL;
  void *module = path == NULL ? NULL : dlopen(path, RTLD_NOW | RTLD_LOCAL);
  CK_C_GetFunctionList get = NULL;
  if (module != NULL) *(void **)&get = dlsym(module, "C_GetFunctionList");
  if (get == NULL || get(&list) != CKR_OK)
    fprintf(stderr, "PKCS#11 shim: PKCS11_SHIM_MODULE does not name a PKCS#11 module: %s\n", path ? path : "not set");
  else
    real = list;
}

const struct ck_function_list *real_module(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, load);
  return real;
}

/* FORWARD(function, (its arguments), what the log may tell of them) */
#define FORWARD(name, arguments, ...)                         \
  struct call call = {.function = #name, __VA_ARGS__};        \
  ck_rv_t code;                                               \
  if (call_begins(&call, &code)) code = real->name arguments; \
  return call_ends(&call, code)

/* The same for what makes, seeks or removes objects. */
#define FORWARD_ALONE(name, arguments, ...)            \
  struct call call = {.function = #name, __VA_ARGS__}; \
  ck_rv_t code;                                        \
  if (call_begins(&call, &code)) {                     \
    pthread_mutex_lock(&objects);                      \
    code = real->name arguments;                       \
    pthread_mutex_unlock(&objects);                    \
  }                                                    \
  return call_ends(&call, code)

ck_rv_t C_WrapKey(ck_session_handle_t session, struct ck_mechanism *mechanism, ck_object_handle_t wrapping_key,
                  ck_object_handle_t key, unsigned char *wrapped_key, unsigned long *wrapped_key_len) {
  struct call call = {.function = "C_WrapKey", .session = session, .mechanism = mechanism,
                      .objects = {wrapping_key, key}, .output = wrapped_key, .output_length = wrapped_key_len};
  ck_rv_t code;
  if (call_begins(&call, &code)) {
    /* Whether it may be wrapped at all, and how long that is, stays the real module's decision. */
    code = real->C_WrapKey(session, mechanism, wrapping_key, key, wrapped_key, wrapped_key_len);
    if (code == CKR_OK && wrapped_key != NULL && mechanism->mechanism == CKM_AES_KEY_WRAP_PAD && exact_wrap_wanted()) {
      pthread_mutex_lock(&objects);
      code = exact_wrap(real, session, wrapping_key, key, wrapped_key, *wrapped_key_len);
      pthread_mutex_unlock(&objects);
    }
  }
  return call_ends(&call, code);
}

ck_rv_t C_Initialize(void *init_args) {
  FORWARD_ALONE(C_Initialize, (init_args));
}

ck_rv_t C_Finalize(void *reserved) {
  FORWARD_ALONE(C_Finalize, (reserved));
}

ck_rv_t C_GetInfo(struct ck_info *info) {
  FORWARD(C_GetInfo, (info));
}

ck_rv_t C_GetSlotList(unsigned char token_present, ck_slot_id_t *slot_list, unsigned long *count) {
  FORWARD(C_GetSlotList, (token_present, slot_list, count));
}

ck_rv_t C_GetSlotInfo(ck_slot_id_t slot_id, struct ck_slot_info *info) {
  FORWARD(C_GetSlotInfo, (slot_id, info));
}

ck_rv_t C_GetTokenInfo(ck_slot_id_t slot_id, struct ck_token_info *info) {
  FORWARD(C_GetTokenInfo, (slot_id, info));
}

ck_rv_t C_GetMechanismList(ck_slot_id_t slot_id, ck_mechanism_type_t *mechanism_list, unsigned long *count) {
  FORWARD(C_GetMechanismList, (slot_id, mechanism_list, count));
}

ck_rv_t C_GetMechanismInfo(ck_slot_id_t slot_id, ck_mechanism_type_t type, struct ck_mechanism_info *info) {
  FORWARD(C_GetMechanismInfo, (slot_id, type, info));
}

ck_rv_t C_InitToken(ck_slot_id_t slot_id, unsigned char *pin, unsigned long pin_len, unsigned char *label) {
  FORWARD(C_InitToken, (slot_id, pin, pin_len, label));
}

ck_rv_t C_InitPIN(ck_session_handle_t session, unsigned char *pin, unsigned long pin_len) {
  FORWARD(C_InitPIN, (session, pin, pin_len), .session = session);
}

ck_rv_t C_SetPIN(ck_session_handle_t session, unsigned char *old_pin, unsigned long old_len, unsigned char *new_pin,
                 unsigned long new_len) {
  FORWARD(C_SetPIN, (session, old_pin, old_len, new_pin, new_len), .session = session);
}

ck_rv_t C_OpenSession(ck_slot_id_t slot_id, ck_flags_t flags, void *application, ck_notify_t notify,
                      ck_session_handle_t *session) {
  FORWARD(C_OpenSession, (slot_id, flags, application, notify, session));
}

ck_rv_t C_CloseSession(ck_session_handle_t session) {
  FORWARD_ALONE(C_CloseSession, (session), .session = session);
}

ck_rv_t C_CloseAllSessions(ck_slot_id_t slot_id) {
  FORWARD_ALONE(C_CloseAllSessions, (slot_id));
}

ck_rv_t C_GetSessionInfo(ck_session_handle_t session, struct ck_session_info *info) {
  FORWARD(C_GetSessionInfo, (session, info), .session = session);
}

ck_rv_t C_GetOperationState(ck_session_handle_t session, unsigned char *state, unsigned long *state_len) {
  FORWARD(C_GetOperationState, (session, state, state_len), .session = session);
}

ck_rv_t C_SetOperationState(ck_session_handle_t session, unsigned char *state, unsigned long state_len,
                            ck_object_handle_t encryption_key, ck_object_handle_t authentication_key) {
  FORWARD(C_SetOperationState, (session, state, state_len, encryption_key, authentication_key), .session = session);
}

ck_rv_t C_Login(ck_session_handle_t session, ck_user_type_t user_type, unsigned char *pin, unsigned long pin_len) {
  FORWARD(C_Login, (session, user_type, pin, pin_len), .session = session);
}

ck_rv_t C_Logout(ck_session_handle_t session) {
  FORWARD_ALONE(C_Logout, (session), .session = session);
}

ck_rv_t C_CreateObject(ck_session_handle_t session, struct ck_attribute *templ, unsigned long count,
                       ck_object_handle_t *object) {
  FORWARD_ALONE(C_CreateObject, (session, templ, count, object), .session = session, .templates = {templ},
                .counts = {count}, .made = {object});
}

ck_rv_t C_CopyObject(ck_session_handle_t session, ck_object_handle_t object, struct ck_attribute *templ,
                     unsigned long count, ck_object_handle_t *new_object) {
  FORWARD_ALONE(C_CopyObject, (session, object, templ, count, new_object), .session = session, .objects = {object},
                .templates = {templ}, .counts = {count}, .made = {new_object});
}

ck_rv_t C_DestroyObject(ck_session_handle_t session, ck_object_handle_t object) {
  FORWARD_ALONE(C_DestroyObject, (session, object), .session = session, .objects = {object});
}

ck_rv_t C_GetObjectSize(ck_session_handle_t session, ck_object_handle_t object, unsigned long *size) {
  FORWARD(C_GetObjectSize, (session, object, size), .session = session, .objects = {object});
}

ck_rv_t C_GetAttributeValue(ck_session_handle_t session, ck_object_handle_t object, struct ck_attribute *templ,
                            unsigned long count) {
  FORWARD(C_GetAttributeValue, (session, object, templ, count), .session = session, .objects = {object},
          .templates = {templ}, .counts = {count});
}

ck_rv_t C_SetAttributeValue(ck_session_handle_t session, ck_object_handle_t object, struct ck_attribute *templ,
                            unsigned long count) {
  FORWARD(C_SetAttributeValue, (session, object, templ, count), .session = session, .objects = {object},
          .templates = {templ}, .counts = {count});
}

ck_rv_t C_FindObjectsInit(ck_session_handle_t session, struct ck_attribute *templ, unsigned long count) {
  FORWARD_ALONE(C_FindObjectsInit, (session, templ, count), .session = session, .templates = {templ},
                .counts = {count});
}

ck_rv_t C_FindObjects(ck_session_handle_t session, ck_object_handle_t *object, unsigned long max_object_count,
                      unsigned long *object_count) {
  FORWARD(C_FindObjects, (session, object, max_object_count, object_count), .session = session);
}

ck_rv_t C_FindObjectsFinal(ck_session_handle_t session) {
  FORWARD(C_FindObjectsFinal, (session), .session = session);
}

ck_rv_t C_EncryptInit(ck_session_handle_t session, struct ck_mechanism *mechanism, ck_object_handle_t key) {
  FORWARD(C_EncryptInit, (session, mechanism, key), .session = session, .mechanism = mechanism, .objects = {key});
}

ck_rv_t C_Encrypt(ck_session_handle_t session, unsigned char *data, unsigned long data_len, unsigned char *out,
                  unsigned long *out_len) {
  FORWARD(C_Encrypt, (session, data, data_len, out, out_len), .session = session, .output = out,
          .output_length = out_len);
}

ck_rv_t C_EncryptUpdate(ck_session_handle_t session, unsigned char *part, unsigned long part_len, unsigned char *out,
                        unsigned long *out_len) {
  FORWARD(C_EncryptUpdate, (session, part, part_len, out, out_len), .session = session);
}

ck_rv_t C_EncryptFinal(ck_session_handle_t session, unsigned char *out, unsigned long *out_len) {
  FORWARD(C_EncryptFinal, (session, out, out_len), .session = session);
}

ck_rv_t C_DecryptInit(ck_session_handle_t session, struct ck_mechanism *mechanism, ck_object_handle_t key) {
  FORWARD(C_DecryptInit, (session, mechanism, key), .session = session, .mechanism = mechanism, .objects = {key});
}

ck_rv_t C_Decrypt(ck_session_handle_t session, unsigned char *in, unsigned long in_len, unsigned char *data,
                  unsigned long *data_len) {
  FORWARD(C_Decrypt, (session, in, in_len, data, data_len), .session = session, .output = data,
          .output_length = data_len);
}

ck_rv_t C_DecryptUpdate(ck_session_handle_t session, unsigned char *in, unsigned long in_len, unsigned char *part,
                        unsigned long *part_len) {
  FORWARD(C_DecryptUpdate, (session, in, in_len, part, part_len), .session = session);
}

ck_rv_t C_DecryptFinal(ck_session_handle_t session, unsigned char *out, unsigned long *out_len) {
  FORWARD(C_DecryptFinal, (session, out, out_len), .session = session);
}

ck_rv_t C_DigestInit(ck_session_handle_t session, struct ck_mechanism *mechanism) {
  FORWARD(C_DigestInit, (session, mechanism), .session = session, .mechanism = mechanism);
}

ck_rv_t C_Digest(ck_session_handle_t session, unsigned char *data, unsigned long data_len, unsigned char *digest,
                 unsigned long *digest_len) {
  FORWARD(C_Digest, (session, data, data_len, digest, digest_len), .session = session);
}

ck_rv_t C_DigestUpdate(ck_session_handle_t session, unsigned char *part, unsigned long part_len) {
  FORWARD(C_DigestUpdate, (session, part, part_len), .session = session);
}

ck_rv_t C_DigestKey(ck_session_handle_t session, ck_object_handle_t key) {
  FORWARD(C_DigestKey, (session, key), .session = session, .objects = {key});
}

ck_rv_t C_DigestFinal(ck_session_handle_t session, unsigned char *digest, unsigned long *digest_len) {
  FORWARD(C_DigestFinal, (session, digest, digest_len), .session = session);
}

ck_rv_t C_SignInit(ck_session_handle_t session, struct ck_mechanism *mechanism, ck_object_handle_t key) {
  FORWARD(C_SignInit, (session, mechanism, key), .session = session, .mechanism = mechanism, .objects = {key});
}

ck_rv_t C_Sign(ck_session_handle_t session, unsigned char *data, unsigned long data_len, unsigned char *signature,
               unsigned long *signature_len) {
  FORWARD(C_Sign, (session, data, data_len, signature, signature_len), .session = session, .output = signature,
          .output_length = signature_len);
}

ck_rv_t C_SignUpdate(ck_session_handle_t session, unsigned char *part, unsigned long part_len) {
  FORWARD(C_SignUpdate, (session, part, part_len), .session = session);
}

ck_rv_t C_SignFinal(ck_session_handle_t session, unsigned char *signature, unsigned long *signature_len) {
  FORWARD(C_SignFinal, (session, signature, signature_len), .session = session, .output = signature,
          .output_length = signature_len);
}

ck_rv_t C_SignRecoverInit(ck_session_handle_t session, struct ck_mechanism *mechanism, ck_object_handle_t key) {
  FORWARD(C_SignRecoverInit, (session, mechanism, key), .session = session, .mechanism = mechanism, .objects = {key});
}

ck_rv_t C_SignRecover(ck_session_handle_t session, unsigned char *data, unsigned long data_len,
                      unsigned char *signature, unsigned long *signature_len) {
  FORWARD(C_SignRecover, (session, data, data_len, signature, signature_len), .session = session);
}

ck_rv_t C_VerifyInit(ck_session_handle_t session, struct ck_mechanism *mechanism, ck_object_handle_t key) {
  FORWARD(C_VerifyInit, (session, mechanism, key), .session = session, .mechanism = mechanism, .objects = {key});
}

ck_rv_t C_Verify(ck_session_handle_t session, unsigned char *data, unsigned long data_len, unsigned char *signature,
                 unsigned long signature_len) {
  FORWARD(C_Verify, (session, data, data_len, signature, signature_len), .session = session);
}

ck_rv_t C_VerifyUpdate(ck_session_handle_t session, unsigned char *part, unsigned long part_len) {
  FORWARD(C_VerifyUpdate, (session, part, part_len), .session = session);
}

ck_rv_t C_VerifyFinal(ck_session_handle_t session, unsigned char *signature, unsigned long signature_len) {
  FORWARD(C_VerifyFinal, (session, signature, signature_len), .session = session);
}

ck_rv_t C_VerifyRecoverInit(ck_session_handle_t session, struct ck_mechanism *mechanism, ck_object_handle_t key) {
  FORWARD(C_VerifyRecoverInit, (session, mechanism, key), .session = session, .mechanism = mechanism, .objects = {key});
}

ck_rv_t C_VerifyRecover(ck_session_handle_t session, unsigned char *signature, unsigned long signature_len,
                        unsigned char *data, unsigned long *data_len) {
  FORWARD(C_VerifyRecover, (session, signature, signature_len, data, data_len), .session = session);
}

ck_rv_t C_DigestEncryptUpdate(ck_session_handle_t session, unsigned char *part, unsigned long part_len,
                              unsigned char *out, unsigned long *out_len) {
  FORWARD(C_DigestEncryptUpdate, (session, part, part_len, out, out_len), .session = session);
}

ck_rv_t C_DecryptDigestUpdate(ck_session_handle_t session, unsigned char *in, unsigned long in_len,
                              unsigned char *part, unsigned long *part_len) {
  FORWARD(C_DecryptDigestUpdate, (session, in, in_len, part, part_len), .session = session);
}

ck_rv_t C_SignEncryptUpdate(ck_session_handle_t session, unsigned char *part, unsigned long part_len,
                            unsigned char *out, unsigned long *out_len) {
  FORWARD(C_SignEncryptUpdate, (session, part, part_len, out, out_len), .session = session);
}

ck_rv_t C_DecryptVerifyUpdate(ck_session_handle_t session, unsigned char *in, unsigned long in_len,
                              unsigned char *part, unsigned long *part_len) {
  FORWARD(C_DecryptVerifyUpdate, (session, in, in_len, part, part_len), .session = session);
}

ck_rv_t C_GenerateKey(ck_session_handle_t session, struct ck_mechanism *mechanism, struct ck_attribute *templ,
                      unsigned long count, ck_object_handle_t *key) {
  FORWARD_ALONE(C_GenerateKey, (session, mechanism, templ, count, key), .session = session, .mechanism = mechanism,
                .templates = {templ}, .counts = {count}, .made = {key});
}

ck_rv_t C_GenerateKeyPair(ck_session_handle_t session, struct ck_mechanism *mechanism,
                          struct ck_attribute *public_templ, unsigned long public_count,
                          struct ck_attribute *private_templ, unsigned long private_count,
                          ck_object_handle_t *public_key, ck_object_handle_t *private_key) {
  FORWARD_ALONE(C_GenerateKeyPair, (session, mechanism, public_templ, public_count, private_templ,
                private_count, public_key, private_key), .session = session, .mechanism = mechanism,
                .templates = {public_templ, private_templ}, .counts = {public_count, private_count},
                .made = {public_key, private_key});
}

ck_rv_t C_UnwrapKey(ck_session_handle_t session, struct ck_mechanism *mechanism, ck_object_handle_t unwrapping_key,
                    unsigned char *wrapped_key, unsigned long wrapped_key_len, struct ck_attribute *templ,
                    unsigned long count, ck_object_handle_t *key) {
  FORWARD_ALONE(C_UnwrapKey, (session, mechanism, unwrapping_key, wrapped_key, wrapped_key_len, templ, count, key),
                .session = session, .mechanism = mechanism, .objects = {unwrapping_key}, .templates = {templ},
                .counts = {count}, .made = {key});
}

ck_rv_t C_DeriveKey(ck_session_handle_t session, struct ck_mechanism *mechanism, ck_object_handle_t base_key,
                    struct ck_attribute *templ, unsigned long count, ck_object_handle_t *key) {
  FORWARD_ALONE(C_DeriveKey, (session, mechanism, base_key, templ, count, key), .session = session,
                .mechanism = mechanism, .objects = {base_key}, .templates = {templ}, .counts = {count}, .made = {key});
}

ck_rv_t C_SeedRandom(ck_session_handle_t session, unsigned char *seed, unsigned long seed_len) {
  FORWARD(C_SeedRandom, (session, seed, seed_len), .session = session);
}

ck_rv_t C_GenerateRandom(ck_session_handle_t session, unsigned char *random_data, unsigned long random_len) {
  FORWARD(C_GenerateRandom, (session, random_data, random_len), .session = session, .output = random_data,
          .output_length = &random_len);
}

ck_rv_t C_GetFunctionStatus(ck_session_handle_t session) {
  FORWARD(C_GetFunctionStatus, (session), .session = session);
}

ck_rv_t C_CancelFunction(ck_session_handle_t session) {
  FORWARD(C_CancelFunction, (session), .session = session);
}

ck_rv_t C_WaitForSlotEvent(ck_flags_t flags, ck_slot_id_t *slot, void *reserved) {
  FORWARD(C_WaitForSlotEvent, (flags, slot, reserved));
}

static struct ck_function_list functions = {
    {2, 40}, C_Initialize, C_Finalize, C_GetInfo, C_GetFunctionList, C_GetSlotList, C_GetSlotInfo, C_GetTokenInfo,
    C_GetMechanismList, C_GetMechanismInfo, C_InitToken, C_InitPIN, C_SetPIN, C_OpenSession, C_CloseSession,
    C_CloseAllSessions, C_GetSessionInfo, C_GetOperationState, C_SetOperationState, C_Login, C_Logout,
    C_CreateObject, C_CopyObject, C_DestroyObject, C_GetObjectSize, C_GetAttributeValue, C_SetAttributeValue,
    C_FindObjectsInit, C_FindObjects, C_FindObjectsFinal, C_EncryptInit, C_Encrypt, C_EncryptUpdate,
    C_EncryptFinal, C_DecryptInit, C_Decrypt, C_DecryptUpdate, C_DecryptFinal, C_DigestInit, C_Digest,
    C_DigestUpdate, C_DigestKey, C_DigestFinal, C_SignInit, C_Sign, C_SignUpdate, C_SignFinal, C_SignRecoverInit,
    C_SignRecover, C_VerifyInit, C_Verify, C_VerifyUpdate, C_VerifyFinal, C_VerifyRecoverInit, C_VerifyRecover,
    C_DigestEncryptUpdate, C_DecryptDigestUpdate, C_SignEncryptUpdate, C_DecryptVerifyUpdate, C_GenerateKey,
    C_GenerateKeyPair, C_WrapKey, C_UnwrapKey, C_DeriveKey, C_SeedRandom, C_GenerateRandom, C_GetFunctionStatus,
    C_CancelFunction, C_WaitForSlotEvent,
};

ck_rv_t C_GetFunctionList(struct ck_function_list **list) {
  if (list == NULL) return CKR_ARGUMENTS_BAD;
  if (real_module() == NULL) return CKR_GENERAL_ERROR;
  functions.version = real->version;
  *list = &functions;
  return CKR_OK;
}
