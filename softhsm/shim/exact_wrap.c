/* Key wrap with padding as RFC 5649 has it.
 *
 * SoftHSM 2.6.1 fills the plaintext up with zero bytes before it wraps, so its length word names the filled length. Here
 * target and wrapping key are carried over, under an AES key that lives for this one call in a session of its own, to
 * a copy that can be read and a copy that can encrypt; then the right length is wrapped. Closing that session destroys
 * all three.
 */
#include <string.h>

#include "shim.h"

#define SEMIBLOCK 8
#define MAX_PLAINTEXT 4096 /* the PKCS#8 form of an RSA-4096 key has about 2,400 bytes */

struct workshop {
  const struct ck_function_list *real;
  ck_session_handle_t session;
  ck_object_handle_t carrier;
};

static unsigned char yes = 1, no = 0;

static ck_rv_t make_carrier(struct workshop *shop) {
  ck_object_class_t class = CKO_SECRET_KEY;
  unsigned long bytes = 32;
  struct ck_mechanism generate = {CKM_AES_KEY_GEN, NULL, 0};
  struct ck_attribute template[] = {
      {CKA_CLASS, &class, sizeof class}, {CKA_VALUE_LEN, &bytes, sizeof bytes}, {CKA_TOKEN, &no, 1},
      {CKA_PRIVATE, &yes, 1},            {CKA_SENSITIVE, &yes, 1},              {CKA_EXTRACTABLE, &no, 1},
      {CKA_WRAP, &yes, 1},               {CKA_UNWRAP, &yes, 1},
  };
  return shop->real->C_GenerateKey(shop->session, &generate, template, sizeof template / sizeof *template,
                                   &shop->carrier);
}

/* Make a copy of a key as a session object: an AES key that can encrypt, or bytes that can be read. */
static ck_rv_t copy_as(struct workshop *shop, ck_object_handle_t key, ck_key_type_t type, ck_object_handle_t *copy) {
  unsigned char carried[MAX_PLAINTEXT + 2 * SEMIBLOCK];
  unsigned long length = sizeof carried;
  ck_object_class_t class = CKO_SECRET_KEY;
  bool encrypts = type == CKK_AES;
  struct ck_mechanism wrap = {encrypts ? CKM_AES_KEY_WRAP : CKM_AES_KEY_WRAP_PAD, NULL, 0};
  struct ck_attribute template[] = {
      {CKA_CLASS, &class, sizeof class},
      {CKA_KEY_TYPE, &type, sizeof type},
      {CKA_TOKEN, &no, 1},
      {CKA_PRIVATE, &yes, 1},
      {CKA_SENSITIVE, encrypts ? &yes : &no, 1},
      {CKA_EXTRACTABLE, encrypts ? &no : &yes, 1},
      {CKA_ENCRYPT, encrypts ? &yes : &no, 1},
  };
  ck_rv_t code = shop->real->C_WrapKey(shop->session, &wrap, shop->carrier, key, carried, &length);
  if (code != CKR_OK) return code;
  return shop->real->C_UnwrapKey(shop->session, &wrap, shop->carrier, carried, length, template,
                                 sizeof template / sizeof *template, copy);
}

/* The length of the DER element that the bytes begin with; 0 when it does not fit into them. */
static unsigned long der_length(const unsigned char *bytes, unsigned long available) {
  unsigned long octets, length = 0;
  if (available < 2) return 0;
  if (bytes[1] < 0x80) return 2UL + bytes[1] <= available ? 2UL + bytes[1] : 0;
  octets = bytes[1] & 0x7FU;
  if (octets == 0 || octets > 3 || available < 2 + octets) return 0;
  for (unsigned long i = 0; i < octets; i++) length = length << 8 | bytes[2 + i];
  return 2 + octets + length <= available ? 2 + octets + length : 0;
}

/* How many of the filled-up bytes are the key: the DER length of a private key, CKA_VALUE_LEN of a secret one. */
static ck_rv_t true_length(struct workshop *shop, ck_object_handle_t key, const unsigned char *filled,
                           unsigned long filled_length, unsigned long *length) {
  ck_object_class_t class = 0;
  struct ck_attribute asked_class = {CKA_CLASS, &class, sizeof class};
  struct ck_attribute asked_length = {CKA_VALUE_LEN, length, sizeof *length};
  ck_rv_t code = shop->real->C_GetAttributeValue(shop->session, key, &asked_class, 1);
  if (code != CKR_OK) return code;
  if (class == CKO_SECRET_KEY) {
    code = shop->real->C_GetAttributeValue(shop->session, key, &asked_length, 1);
    if (code != CKR_OK) return code;
  } else {
    *length = der_length(filled, filled_length);
  }
  if (*length == 0 || *length > filled_length || filled_length - *length >= SEMIBLOCK) return CKR_FUNCTION_FAILED;
  for (unsigned long i = *length; i < filled_length; i++)
    if (filled[i] != 0) return CKR_FUNCTION_FAILED;
  return CKR_OK;
}

/* RFC 5649, 4.1: on entry the plaintext, filled up, stands behind the first semiblock; on return the blob stands there. */
static ck_rv_t wrap_in_place(struct workshop *shop, ck_object_handle_t encrypting, unsigned char *blob,
                             unsigned long semiblocks, unsigned long plaintext_length) {
  const struct ck_function_list *real = shop->real;
  unsigned char block[2 * SEMIBLOCK] = {0xA6, 0x59, 0x59, 0xA6};
  unsigned long length, step = 0;
  struct ck_mechanism ecb = {CKM_AES_ECB, NULL, 0};
  ck_rv_t code = real->C_EncryptInit(shop->session, &ecb, encrypting);
  for (int i = 0; i < 4; i++) block[4 + i] = (unsigned char)(plaintext_length >> (24 - 8 * i));
  if (semiblocks == 1) { /* one block is encrypted as it is */
    memcpy(block + SEMIBLOCK, blob + SEMIBLOCK, SEMIBLOCK);
    length = sizeof block;
    if (code == CKR_OK) code = real->C_EncryptUpdate(shop->session, block, sizeof block, blob, &length);
    goto done;
  }
  for (int round = 0; round < 6; round++)
    for (unsigned long i = 1; i <= semiblocks && code == CKR_OK; i++) {
      unsigned char result[2 * SEMIBLOCK];
      memcpy(block + SEMIBLOCK, blob + i * SEMIBLOCK, SEMIBLOCK);
      length = sizeof result;
      code = real->C_EncryptUpdate(shop->session, block, sizeof block, result, &length);
      if (code == CKR_OK && length != sizeof result) code = CKR_FUNCTION_FAILED;
      step++;
      for (int j = 0; j < SEMIBLOCK; j++) block[j] = result[j] ^ (unsigned char)((unsigned long long)step >> (56 - 8 * j));
      memcpy(blob + i * SEMIBLOCK, result + SEMIBLOCK, SEMIBLOCK);
    }
  memcpy(blob, block, SEMIBLOCK);
done:
  explicit_bzero(block, sizeof block);
  return code;
}

static ck_rv_t wrap_in(struct workshop *shop, ck_object_handle_t wrapping_key, ck_object_handle_t key,
                       unsigned char *work, unsigned long length) {
  ck_object_handle_t encrypting, readable;
  unsigned long filled = length - SEMIBLOCK, plaintext = 0;
  struct ck_attribute value = {CKA_VALUE, work + SEMIBLOCK, filled};
  ck_rv_t code = make_carrier(shop);
  if (code == CKR_OK) code = copy_as(shop, wrapping_key, CKK_AES, &encrypting);
  if (code == CKR_KEY_UNEXTRACTABLE) code = CKR_WRAPPING_KEY_HANDLE_INVALID; /* it is not the target that may not go */
  if (code == CKR_OK) code = copy_as(shop, key, CKK_GENERIC_SECRET, &readable);
  if (code == CKR_OK) code = shop->real->C_GetAttributeValue(shop->session, readable, &value, 1);
  if (code == CKR_OK && value.value_len != filled) code = CKR_FUNCTION_FAILED;
  if (code == CKR_OK) code = true_length(shop, key, work + SEMIBLOCK, filled, &plaintext);
  if (code == CKR_OK) code = wrap_in_place(shop, encrypting, work, filled / SEMIBLOCK, plaintext);
  return code;
}

ck_rv_t exact_wrap(const struct ck_function_list *real, ck_session_handle_t session, ck_object_handle_t wrapping_key,
                   ck_object_handle_t key, unsigned char *blob, unsigned long length) {
  unsigned char work[SEMIBLOCK + MAX_PLAINTEXT];
  struct workshop shop = {.real = real};
  struct ck_session_info outer;
  ck_rv_t code = CKR_DATA_LEN_RANGE;
  if (length >= 2 * SEMIBLOCK && length <= sizeof work && length % SEMIBLOCK == 0)
    code = real->C_GetSessionInfo(session, &outer);
  if (code == CKR_OK) code = real->C_OpenSession(outer.slot_id, CKF_SERIAL_SESSION, NULL, NULL, &shop.session);
  if (code == CKR_OK) {
    ck_rv_t closed;
    code = wrap_in(&shop, wrapping_key, key, work, length);
    closed = real->C_CloseSession(shop.session);
    if (code == CKR_OK) code = closed;
  }
  if (code == CKR_OK)
    memcpy(blob, work, length);
  else
    explicit_bzero(blob, length);
  explicit_bzero(work, sizeof work);
  return code;
}
