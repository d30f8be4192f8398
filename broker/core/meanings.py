"""What each reason means: how a call that is refused for it ends, what its sentence says, and when it is given.

docs/errors.md is made from this. A reason that two kinds of error are raised with stands under both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from broker.core.errors import Outcome
from broker.core.reasons import Reason, Says

TABLES: Mapping[Outcome, str] = MappingProxyType(
    {
        Outcome.INVALID_ARGUMENT: """
        AAD_UNSUPPORTED             mend    Associated data was given for RSA-OAEP, which takes none.
        ACTION_UNKNOWN              command The policy question names an action that there is not.
        ALGORITHM_MISMATCH          mend    The algorithm asked for is none that a key of this type and usage has.
        ANSWER_TOO_LARGE            mend    The secrets asked for together are more than one answer holds.
        APPROVAL_ID_INVALID         command The id is not one that an approval could have.
        APPROVAL_REASON_INVALID     mend    The reason given for a word on an approval is too long, or several lines.
        APPROVAL_TOO_LARGE          mend    The request needs approvals, and is too long for those who would read it.
        ATTRIBUTE_UNKNOWN           command The policy question gives values that do not decide on such a thing.
        BINDING_INVALID             mend    A target credential is not bound in the form that init takes.
        BLACKOUT_INVALID            mend    A blackout window of a schedule is not valid, or there are too many.
        BLACKOUT_TOTAL              mend    The blackout windows leave no hour of the week free.
        CHAIN_INVALID               command The name of an audit chain is too long.
        CIPHERTEXT_INVALID          mend    The ciphertext does not open, whatever the cause.
        COMPROMISE_REASON_INVALID   mend    The reason given for a compromise is empty, too long, or several lines.
        CONFIG_INVALID              mend    The configuration is not valid.
        CONFIG_UNREADABLE           mend    The configuration cannot be read.
        CSR_INVALID                 mend    The certificate request was not taken.
        DATABASE_INVALID            mend    The address of a database is not one that the broker takes.
        DELAY_OUT_OF_RANGE          mend    The delay before a key is destroyed is too short or too long.
        DIGEST_LENGTH               mend    The input is no digest of the algorithm, or it takes none.
        DURATION_INVALID            mend    A duration is not whole seconds, or out of range.
        ENUM_UNKNOWN                mend    A field has a number that this broker does not know.
        EXPIRY_PAST                 mend    The time of expiry is over already.
        FIELDS_INVALID              mend    The fields of the secret are none, too many, or contradict each other.
        FIELD_INVALID               mend    The name of a secret's field is not valid.
        FIELD_MISSING               mend    A field that the method needs is not set.
        FIELD_TOO_LONG              mend    A field has more bytes or items than are taken.
        FIELD_UNKNOWN               mend    The request has a field that this broker does not know.
        FILTER_INVALID              mend    The text to filter by is too long.
        FOLDER_INVALID              mend    A folder cannot be used.
        GRACE_OUT_OF_RANGE          mend    The grace of a rotation is too long.
        GROUPS_INVALID              mend    The operator would be in too many groups.
        IDENTITY_TOKEN_MISSING      mend    The method opens a session, and the call carries no identity token.
        INPUTS_INVALID              mend    The inputs are none, too many, or messages and digests mixed.
        KEK_FILE_INVALID            mend    The file does not hold a wrapping key.
        KEK_INVALID                 none    The wrapping key is not the one that its thumbprint names.
        KEK_UNEXPECTED              mend    The wrapping key is not the one that was expected.
        KEY_NOT_EXPORTABLE          mend    The key, or keys of its type, never leave the HSM.
        KEY_TYPE_UNSUPPORTED        mend    The HSM or the target has no keys of this type.
        LABELS_INVALID              mend    The labels are too many, or not valid.
        MAX_AGE_OUT_OF_RANGE        mend    The age that a secret may reach is too short or too long.
        MESSAGE_INVALID             mend    The request is no message of this method.
        MESSAGE_MISSING             none    The call carried no request.
        NAME_INVALID                mend    A name is not valid.
        OPERATION_NAME_INVALID      command The name of an operation is not valid.
        OWNER_INVALID               mend    The owner is no principal.
        OWN_KEY_UNKNOWN             command The broker has no key of its own of that name.
        PAGE_SIZE_INVALID           mend    The page size is out of range.
        PAGE_TOKEN_INVALID          mend    The page token was not made for this list and this caller.
        PEM_INVALID                 mend    A field is not PEM.
        PERIOD_OUT_OF_RANGE         mend    The period of a schedule is too short or too long.
        PIN_LENGTH                  mend    The PIN is too short or too long for SoftHSM.
        PLAINTEXT_TOO_LONG          mend    The plaintext is longer than one RSA block of the key holds.
        POLICY_INVALID              mend    The policy is not valid.
        RANDOM_LENGTH               mend    So many random bytes are not given at a time.
        REFERENCES_INVALID          mend    The references are none, too many, or one of them twice.
        REFERENCE_INVALID           mend    A reference to a secret is not valid.
        REQUEST_ID_INVALID          mend    The request id is no UUID of version 4.
        RESOURCE_KIND_WRONG         mend    The policy question's action does not act on such a thing.
        SCHEDULE_INVALID            mend    Jitter, grace or warning of a schedule do not fit its period.
        SECRET_TOO_LARGE            mend    The values of the secret are too large.
        SELECTION_INVALID           mend    What is to be ended is not chosen in exactly one way.
        SERVER_NAME_INVALID         mend    The server's names for its certificate are not valid.
        SESSION_TOKEN_MISSING       mend    The method acts on a session, and the call carries no token of one.
        SIGNATURE_ENCODING          mend    The signature is not in the encoding that was named.
        TARGET_CREDENTIAL_NOT_BOUND mend    The configuration does not give this target such a credential.
        TARGET_HOST_NOT_ALLOWED     mend    The target's host is not allowed in the configuration.
        TARGET_KIND_UNKNOWN         mend    This kind of target is not known.
        TARGET_SETTINGS_INVALID     mend    The target's settings are not valid.
        TERMS_INVALID               mend    The terms contradict each other.
        TERMS_UNSUPPORTED           mend    The target cannot hold a key to these terms.
        TEXT_INVALID                mend    A text has a character that none may have.
        THUMBPRINT_INVALID          mend    The thumbprint is none, or there can be none yet.
        TIME_INVALID                mend    A field is no time.
        TOKEN_INCOMPLETE            mend    More is needed to use a token that is there already.
        TOKEN_LABEL_INVALID         mend    The token's label is not valid.
        TRUST_RULE_INVALID          mend    The trust rule is not valid.
        TRUST_RULE_WEAK             mend    The trust rule would take tokens of jobs that it should not.
        TTL_INVALID                 mend    A certificate's lifetime is out of range.
        USAGE_MISMATCH              mend    Keys of this type cannot be made for this purpose.
        VALUE_NOT_STORABLE          mend    A value cannot be stored as it is.
        VERSIONS_INVALID            mend    The versions are none, too many, or no numbers of versions.
        VERSION_INVALID             mend    The version is no number that a version has.
        WORKERS_NEED_POSTGRESQL     mend    Several workers need PostgreSQL.
    """,
        Outcome.UNAUTHENTICATED: """
        CERTIFICATE_EXPIRED         mend    The client certificate, or the CA's, is not valid now by the broker's clock.
        CERTIFICATE_IDENTITY        mend    The client certificate names no operator of this trust domain.
        CERTIFICATE_ISSUER          mend    The client certificate was not signed by the operator CA.
        CERTIFICATE_IS_CA           mend    The client certificate is a CA's.
        CERTIFICATE_REVOKED         mend    The client certificate was revoked.
        CERTIFICATE_UNREADABLE      mend    The client certificate cannot be read.
        CERTIFICATE_UNVERIFIED      none    The connection did not verify the client certificate.
        CERTIFICATE_USAGE           mend    The client certificate is not made for clients.
        CREDENTIALS_AMBIGUOUS       mend    The call carries more than one identity, or more than one authorization.
        CREDENTIALS_MISSING         mend    The call carries no identity.
        CREDENTIALS_UNKNOWN         mend    The call's authorization is of a kind that the broker does not know.
        ISSUER_KEYS_REFUSED         mend    The token's issuer does not let the broker read its keys.
        ISSUER_MISCONFIGURED        mend    The keys of the token's issuer are not where the broker may take them from.
        OPERATOR_UNKNOWN            mend    The client certificate's operator is not registered, or was removed.
        REFUSALS_COUNTED            none    In the audit only: refusals of unauthenticated callers that were counted.
        SESSION_INVALID             mend    The session token is not valid, or its session is over.
        TLS_TOO_OLD                 mend    The connection is not TLS 1.3.
        TOKEN_ALGORITHM             mend    The identity token is signed with an algorithm that is not taken.
        TOKEN_AUDIENCE              mend    The identity token is for another audience.
        TOKEN_CLAIMS                mend    The identity token lacks a claim, or has one in a wrong form.
        TOKEN_ISSUER                mend    No trust rule is for the identity token's issuer.
        TOKEN_KEY_UNKNOWN           mend    The issuer does not publish the key that the identity token names.
        TOKEN_MALFORMED             mend    The identity token is not one.
        TOKEN_NOT_HERE              mend    An identity token is not good for this method.
        TOKEN_NOT_SINGLE_USE        mend    The trust rule takes each token once, and this one carries no id.
        TOKEN_REPLAYED              mend    The identity token has opened its one session already.
        TOKEN_REVIEW_FAILED         mend    The identity token's cluster does not vouch for it any more.
        TOKEN_REVIEW_MISCONFIGURED  mend    The identity token's cluster does not let the broker ask about it.
        TOKEN_SIGNATURE             mend    The identity token's signature does not hold.
        TOKEN_TIME                  mend    The identity token is not valid now.
        TRUST_AMBIGUOUS             mend    Several trust rules fit the identity token, and none was named.
        TRUST_CLAIM_MISMATCH        mend    No trust rule fits the claims of the identity token.
        TRUST_NO_RULE               mend    There is no trust rule for the identity token.
        TRUST_RULE_CHANGED          mend    The trust rule that opened the session is gone or changed.
    """,
        Outcome.PERMISSION_DENIED: """
        APPROVAL_OWN                command Nobody approves what they have asked for themselves.
        POLICY_DENIED               command No policy permits it, or one forbids it.
        POLICY_ERROR                command The policy could not be evaluated, which denies.
    """,
        Outcome.NOT_FOUND: """
        APPROVAL_NOT_FOUND          command There is no such approval, or it is forgotten.
        FIELD_NOT_FOUND             command The version of the secret has no such field.
        IMPORT_NOT_FOUND            command There is no such import.
        KEY_NOT_FOUND               command There is no key of this name.
        KEY_NOT_IN_HSM              command The HSM does not hold the key.
        KEY_VERSION_NOT_FOUND       command The key has no such version.
        LEASE_NOT_FOUND             command There is no such lease.
        OPERATION_NOT_FOUND         command There is no such operation, or it has been over for more than a day.
        OPERATOR_NOT_FOUND          command There is no operator of this name.
        POLICY_NOT_FOUND            command There is no such version of the policy.
        ROOT_KEY_NOT_FOUND          command There is no such root key.
        SECRET_NOT_FOUND            command There is no secret of this name.
        SECRET_VERSION_NOT_FOUND    command The secret has no such version.
        SESSION_NOT_FOUND           command There is no such session.
        TARGET_NOT_FOUND            command There is no target of this name.
        TRUST_RULE_NOT_FOUND        command There is no trust rule of this name.
    """,
        Outcome.ALREADY_EXISTS: """
        HSM_ID_TAKEN                mend    The HSM holds another key under the id that was drawn.
        NAME_TAKEN                  mend    The name is in use, or was.
        REQUEST_ID_REUSED           mend    The request id was used for another request.
        TARGET_EXISTS               command A target of this name exists.
        TARGET_NAME_USED            command A target of this name was removed while keys may have been there.
        TOKEN_EXISTS                mend    A token is there already.
    """,
        Outcome.FAILED_PRECONDITION: """
        APPROVAL_DIFFERS            command The approval is about another request than the approver has seen.
        APPROVAL_GIVEN              command The operator has approved it already, and counts once.
        APPROVAL_OVER               command The approval is used, rejected or expired.
        APPROVAL_REQUIRED           command The call is permitted, and other operators have to approve it first.
        APPROVERS_MISSING           mend    Fewer operators may approve than the call needs.
        CA_CERTIFICATE_INVALID      none    A CA certificate of the broker is not PEM.
        CA_EXPIRED                  command A CA certificate of the broker has ended.
        CA_KEY_MISMATCH             mend    A CA certificate does not belong to the CA key in the HSM.
        CA_LAPSES                   mend    A CA certificate ends soon.
        CERTIFICATE_LAPSES          mend    The server certificate ends soon, or has ended.
        CERTIFICATE_NOT_RENEWABLE   mend    The server certificate's folder cannot be written.
        CERTIFICATE_NOT_WRITTEN     mend    The new server certificate cannot be written.
        CERTIFICATE_NOT_YET_VALID   mend    A certificate of the broker starts later than this host's clock says.
        CHANGED_DURING_CALL         command The key was disabled, or the target changed, while the call was under way.
        CHANGED_MEANWHILE           mend    Somebody else changed the same thing first.
        DATABASE_FOREIGN            mend    The database holds another program's tables.
        DATABASE_NOT_OURS           mend    Nobody vouches for the rows that the database holds.
        DATABASE_RIGHTS             mend    The database's user lacks a right that the broker needs.
        DATABASE_TOO_OLD            mend    PostgreSQL is older than the broker takes.
        DESTRUCTION_DUE             mend    The time to cancel the destruction of the key is over.
        DISK_ALMOST_FULL            mend    There is hardly room left for the audit journal.
        DRIFT_FOUND                 command In the audit only: a look at a place found it other than the record says.
        EARLIER_TRY_UNDONE          mend    The request was sent before, and that try was undone.
        ENVIRONMENT_REFUSED         mend    An environment variable is set that would leak secrets or load foreign code.
        FILE_DAMAGED                mend    A file of the broker does not hold what it should.
        FILE_NOT_PRIVATE            mend    A file that holds a secret, or its folder, is open to others.
        FILE_TOO_OPEN               mend    A file can be changed by others than the broker's user.
        HSM_KEY_CONFLICT            mend    What bears a key's label and id has conflicting roles or is readable.
        HSM_LABEL_FIXED             mend    The token does not let the labels of its keys be changed.
        HSM_LABEL_LOST              mend    The token did not keep the label of a key.
        HSM_MECHANISM_MISSING       mend    The token cannot do what is asked for.
        HSM_MODULE_INVALID          mend    The PKCS#11 module is none, or is broken.
        HSM_MODULE_IN_USE           mend    The PKCS#11 module is in use in this process already.
        HSM_MODULE_MISSING          mend    The PKCS#11 module is not there or cannot be read.
        HSM_MODULE_UNLOADABLE       mend    The system does not load the PKCS#11 module.
        HSM_MODULE_UNSAFE           mend    Another user could change the PKCS#11 module.
        HSM_NOT_ADOPTED             command The token holds keys as an earlier release has labelled them.
        HSM_NOT_ENFORCING           mend    The token does not enforce what its keys are for.
        HSM_NOT_OURS                mend    The token holds another key than the one this broker was initialised with.
        HSM_NO_DATA_OBJECTS         mend    The token keeps no data object, so a second broker on it is not noticed.
        HSM_PIN_AT_RISK             mend    One more wrong PIN would lock the token, so none is tried.
        HSM_PIN_FILE                mend    The PIN file holds no PIN.
        HSM_PIN_INCORRECT           mend    The token refused the PIN.
        HSM_PIN_LOCKED              mend    The token's PIN is locked.
        HSM_TAKEN                   mend    The token holds the keys of another broker.
        HSM_TOKEN_AMBIGUOUS         mend    More than one token has the label.
        HSM_TOKEN_CHANGED           mend    The slot holds another token than at the start.
        HSM_TOKEN_MISMATCH          mend    The token with the label has another serial number than is configured.
        HSM_TOKEN_NOT_FOUND         mend    The module shows no such token, or one that is not ready.
        HSM_UNFIT                   mend    The token cannot hold a broker's own keys.
        IMPORT_HELD                 command The import was under way when the database was restored, and is held since.
        IMPORT_NOT_PROVEN           mend    The import was not proven yet.
        IMPORT_PROVEN               command The import was proven already.
        IMPORT_UNSETTLED            mend    Whether the key is at the target cannot be told now.
        INIT_DIFFERS                mend    What init is asked for is not what the folder was made with.
        KEK_CHANGED                 command The target offers another wrapping key than the pinned one.
        KEK_UNEXPECTED              mend    The wrapping key is not the one that was expected.
        KEK_UNSUITABLE              mend    The wrapping key cannot open what is wrapped for it.
        KEK_WEAK                    mend    The wrapping key is not RSA, or too short.
        KEYS_NOT_IN_HSM             mend    Keys of the database are not in this token.
        KEY_AMBIGUOUS               mend    Several objects of the token have the key's id.
        KEY_FILE_EXPOSED            mend    The server's key file is open to others.
        KEY_NOT_EXPORTABLE          mend    The key, or keys of its type, never leave the HSM.
        KEY_NOT_THIS                mend    The object under the key's id was not made as this key.
        KEY_ROTATION_RUNNING        command A rotation of the key is under way already.
        KEY_SEALED                  mend    The key was sealed.
        KEY_STATE                   mend    The key's state forbids it.
        KEY_USAGE                   command The key was made for another purpose.
        KEY_VERSION_HELD            command The version was being made at a restore, and is held since.
        KEY_VERSION_NOT_HELD        mend    The version is not held, so there is nothing to settle.
        KEY_VERSION_PHASE           command The key version is in a phase of its life that does not allow this.
        KEY_VERSION_PRIMARY         command The version is the primary one of its key, which cannot be retired.
        LEADERSHIP_LOST             mend    Another process does the shared work now.
        NEWER_VERSION_THERE         mend    A later version of the key is at the target already.
        NOT_INITIALISED             command No init has made this broker, or the last one did not end.
        NO_PUBLIC_KEY               mend    The key is symmetric.
        OAEP_HASH_UNSUPPORTED       command HSM and target have no hash for RSA-OAEP in common.
        OPERATION_KIND_UNKNOWN      mend    This release does not know operations of that kind.
        OPERATION_ONLY_FORWARD      none    In the log only: an operation of this kind is never undone.
        OPERATION_OVER              none    The operation is over; there is nothing to try again or to give up.
        OPERATOR_CA_INVALID         mend    The operator CA's file cannot be used.
        OPERATOR_REMOVED            mend    The operator was removed for good.
        OWN_KEY_IN_USE              mend    A process still signs with the former audit key.
        OWN_KEY_MISSING             mend    A key of the broker's own is not on record, or does not open.
        OWN_KEY_NOT_FORMER          command No former version of a key of the broker's own is there to retire.
        OWN_KEY_SPENT               command A key of the broker's own has had as many versions as there may ever be.
        PASSWORD_FILE_INVALID       mend    The database's password file does not hold one.
        POLICY_LOCKS_YOU_OUT        mend    Under the policy its author could not set the next one.
        PORT_TAKEN                  mend    Another program has the port.
        PROFILE_IN_THE_WAY          mend    Something else stands where the operator's profile is to be written.
        PROOF_FAILED                mend    What is at the target is not the key in the HSM.
        REMOTE_KEY_DISABLED         mend    The key is disabled at the target.
        REMOTE_KEY_EXPOSED          mend    The key could leave the target, or be changed there.
        REMOTE_KEY_MISSING          mend    The target does not show the key.
        REMOTE_KEY_SHARED           mend    Under the key's name at the target are versions that are not the broker's.
        REMOTE_KEY_STILL_ENABLED    mend    What could not be proven is still enabled at the target.
        REMOTE_NAME_DIFFERS         command The key is at the target under another name.
        REQUEST_TOO_OLD             command The certificate that the request once made has ended.
        ROOT_KEY_HELD               command The root key is held since a restore.
        ROOT_KEY_IN_USE             mend    Secrets still hang on the version of the root key.
        ROOT_KEY_MISSING            command The root key is not in the HSM.
        ROTATION_RUNNING            mend    A root key is being made, or secrets still move to it.
        ROW_DAMAGED                 mend    A stored row cannot be read, though a broker wrote it.
        ROW_FORGED                  mend    A stored row was not written by a broker.
        ROW_KEY_MISSING             mend    The key that vouches for the database's rows is not there.
        SECRET_DAMAGED              mend    The stored secret does not open.
        SECRET_DELETED              command The version of the secret is deleted.
        SECRET_DESTROYED            command The version of the secret was destroyed.
        SECRET_EXPIRED              command The secret has expired.
        SOFTHSM_MISSING             mend    SoftHSM is not installed.
        SQLITE_TOO_OLD              mend    SQLite is older than the broker takes.
        STORE_ALTERED               mend    The database is not as brokers left it.
        STORE_IN_USE                mend    Another process has the SQLite database open.
        STORE_MISSING               command The database is not there.
        STORE_NOT_MIGRATED          command The database has not this release's tables.
        STORE_RESTORED              mend    The database is older than this host's journal knows it.
        STORE_TOO_NEW               mend    The database was migrated by a newer release.
        TARGET_CANNOT_DELETE        mend    The broker may not delete the key at the target, or it is still shown there.
        TARGET_CANNOT_DISABLE       mend    The target cannot disable the version alone, or did not.
        TARGET_CHALLENGE_REFUSED    mend    The vault asks for a token in a way that is not answered.
        TARGET_CREDENTIAL_UNUSABLE  mend    The target's credential cannot be used.
        TARGET_DENIED               mend    The broker lacks rights at the target.
        TARGET_FIREWALL             mend    The vault's firewall does not let this host in.
        TARGET_IN_USE               command Keys are at the target, or may come back there.
        TARGET_KEK_EXISTS           mend    The target has a key of the wrapping key's name.
        TARGET_KEK_FIXED            mend    This kind of target has one wrapping key of its own.
        TARGET_KEK_MISSING          mend    The target does not have the wrapping key, or does not show it.
        TARGET_KEY_DISABLED         mend    The key is not usable at the target now.
        TARGET_MOUNT_MISSING        mend    There is no transit engine at the mount.
        TARGET_NAME_DELETED         mend    A deleted key still holds the name at the target.
        TARGET_NAME_TAKEN           mend    The target has another key of this name.
        TARGET_OPERATION_FORBIDDEN  mend    The key at the target may not be used so.
        TARGET_REFUSED              none    The target refused, for a cause that the sentence tells.
        TARGET_TLS_UNTRUSTED        mend    The target's certificate is not trusted.
        TLS_FILES_DIFFER            mend    The server's certificate was not made for its key.
        TLS_FILE_INVALID            mend    A TLS file is not what it should be.
        TLS_FILE_MISSING            mend    A TLS file cannot be read.
        TOKEN_CLAIMED               mend    A broker on another database has claimed the token.
        TOKEN_NOT_CREATED           mend    SoftHSM did not make the token.
        TRANSFER_FILES_OFF          mend    The configuration does not let keys be carried there in files.
        TRUST_RULES_OVERLAP         mend    Another trust rule takes the same tokens, and gives another pipeline.
        VERSION_MISMATCH            mend    The latest version is not the expected one.
        WRAP_NOT_EXACT              mend    The token's key wrap does not follow RFC 5649 for this key.
        ZONE_UNKNOWN                mend    The host does not know the time zone of a blackout window.
    """,
        Outcome.RESOURCE_EXHAUSTED: """
        APPROVAL_QUOTA              command Too many requests wait for approvals, of the caller or in all.
        CALLER_BUSY                 again   The caller has as many calls waiting for targets as one may.
        IMPORT_QUOTA                command As many imports of the key to the target are on record as may be.
        KEYS_UNDER_WAY              again   The caller has as many keys being made as one may have.
        LEASE_CAP                   command All pipelines together hold as many leases as there may be.
        LEASE_QUOTA                 command The pipeline holds as many leases as one may have.
        MESSAGE_TOO_LARGE           mend    The request is larger than the broker takes.
        METADATA_TOO_LARGE          mend    The call's headers are larger than the broker takes.
        OWN_KEYS_MANY               command There are as many versions of a key of the broker's own as may be at a time.
        ROOT_KEYS_MANY              again   There are as many root keys as may be.
        SESSION_QUOTA               command The pipeline has as many sessions as one may have.
        TARGETS_BUSY                again   As many calls wait for targets as may.
        TARGET_BUSY                 again   As many calls wait for this target as may.
        TOO_MANY_CALLS              again   As many calls are in progress as may be.
        TRUST_RULES_TOO_MANY        mend    There are as many trust rules for the issuer as may be.
        VERSION_QUOTA               command The secret has as many versions as one may have.
        WAITERS_BUSY                again   Too many calls wait for operations to end.
        WAITING_FULL                again   As many calls wait for something outside as may.
    """,
        Outcome.UNAVAILABLE: """
        ADDRESS_IN_USE              mend    The broker cannot listen on the configured address.
        AUDIT_UNAVAILABLE           mend    The audit cannot be written or signed, so nothing is done or answered.
        CHORE_FAILED                none    In the audit only: a work of the broker's own failed.
        CLOCK_OFF                   mend    The broker's clock and its database's differ, so nobody is judged by time.
        HSM_BUSY                    again   The HSM makes keys one at a time, and those of others took too long.
        HSM_FAULT                   mend    A result of the HSM failed its own check and was withheld.
        HSM_UNAVAILABLE             mend    The HSM does not answer.
        IMPORT_IN_PROGRESS          mend    The same import is under way.
        IMPORT_UNSETTLED            mend    Whether the key is at the target cannot be told now.
        ISSUER_UNAVAILABLE          again   The keys of the token's issuer cannot be had right now.
        OPERATION_RUNNING           again   An operation on the same thing is under way.
        ROTATION_WAITS              again   In the log only: a rotation that was given up waits for a target.
        STORE_UNAVAILABLE           mend    The database does not answer, or its files cannot be used.
        TARGET_CONFLICT             again   Somebody else is changing the key at the target.
        TARGET_SEALED               again   The target is sealed.
        TARGET_THROTTLED            again   The target limits the rate of requests.
        TARGET_UNREACHABLE          mend    The target does not answer.
        THREADS_UNAVAILABLE         mend    The system does not give the broker its threads.
        TOKEN_CLAIM_NEW             again   Nothing is destroyed yet: another broker may still claim the token.
        TOKEN_REVIEW_UNAVAILABLE    again   The identity token's cluster cannot be asked right now.
        TOO_SLOW                    again   Encrypting the secret took too long, or the clock moved.
    """,
        Outcome.UNIMPLEMENTED: """
        METHOD_UNKNOWN              none    The broker has no such method.
    """,
        Outcome.CANCELLED: """
        CALL_ENDED                  none    The call was cancelled or cut off before it was carried out.
    """,
        Outcome.DEADLINE_EXCEEDED: """
        MESSAGE_LATE                none    The request did not arrive in time.
    """,
        Outcome.ABORTED: """
        ABANDONED                   none    Of an import: its export was given up, for its call had died.
        GIVEN_UP                    none    Of an operation: an operator has given it up.
        KEY_NOT_MADE                none    In the audit only: a key was never made, and was taken back.
        KEY_VERSION_STAYS_HELD      none    In the audit only: a held version was not kept after all, and stays held.
        OWN_KEY_NOT_MADE            none    In the audit only: the next one of a key of the broker's own was taken back.
        ROTATION_GIVEN_UP           none    In the audit only: a rotation was given up; what it had made is out of use.
        TARGET_NOT_ADDED            none    In the audit only: a KEK was being made for a target, which was given up.
    """,
        Outcome.INTERNAL: """
        INTERNAL                    none    The broker failed; its log tells more.
    """,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """One reason under one outcome."""

    reason: Reason
    outcome: Outcome
    says: Says
    text: str


def meanings() -> Iterator[Meaning]:
    """All of them; ValueError for a line that is none."""
    for outcome, table in TABLES.items():
        for line in table.strip().splitlines():
            name, says, text = line.split(maxsplit=2)
            yield Meaning(reason=Reason(name), outcome=outcome, says=Says[says.upper()], text=text)
