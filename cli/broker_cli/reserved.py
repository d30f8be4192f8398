"""Names of variables that say to a program what to run, load, trust or obey.

A name that only a secret's path and fields make up is never one of these: an operator who may write the secret would
otherwise run what he likes in every job that takes it whole.
"""

from __future__ import annotations

from broker_cli.refusal import Exit, Refusal

FAMILIES = (
    "LD_", "DYLD_", "GLIBC_", "MALLOC_", "GCONV_",  # the loader and the C library
    "BASH_", "SUDO_", "GIT_", "XDG_", "LESS_",  # shells, and what they and others start
    "PYTHON", "PIP_", "UV_", "PERL", "RUBYOPT", "RUBYLIB", "BUNDLE_", "NPM_CONFIG_", "YARN_", "COREPACK_", "DENO_",
    "JAVA_", "_JAVA_", "JDK_", "DOTNET_", "CORECLR_", "COR_", "COMPLUS_", "CARGO_", "RUSTC_", "RUSTUP_", "PHP_INI_",
    "LUA_", "R_", "JULIA_", "CMAKE_", "PKG_CONFIG", "ANSIBLE_", "TF_CLI_", "TF_PLUGIN_",  # languages and their tools
    "OPENSSL_", "GNUTLS_", "GRPC_",  # whom to trust
    "GITHUB_", "RUNNER_", "ACTIONS_", "CI_", "GITLAB_", "SYSTEM_", "AGENT_", "TF_BUILD", "BITBUCKET_", "CIRCLE",
    "BUILDKITE", "BROKER_",  # CIs and this command: what a runner obeys, and what a job believes of itself
)  # fmt: skip
"""Every name that begins so."""

ENDINGS = (
    "_PROXY", "_PRELOAD", "_OPTIONS", "_OPTS", "_FLAGS", "_ASKPASS", "_PAGER", "_EDITOR", "_COMMAND", "_WRAPPER",
    "_CA_BUNDLE", "_CERT_FILE", "_CERT_DIR", "_CA_CERTS", "_REJECT_UNAUTHORIZED", "_CONFIG_FILE",
)  # fmt: skip
"""Every name that ends so."""

NAMES = frozenset({
    "PATH", "IFS", "ENV", "HOME", "SHELL", "SHELLOPTS", "BASHOPTS", "CDPATH", "GLOBIGNORE", "PS4", "ZDOTDIR", "TMPDIR",
    "EDITOR", "VISUAL", "PAGER", "BROWSER", "LESSOPEN", "LESSCLOSE", "HOSTALIASES", "RES_OPTIONS", "LOCALDOMAIN",
    "NODE_PATH", "NODE_REPL_EXTERNAL_MODULE", "GEM_HOME", "GEM_PATH", "CLASSPATH", "MAVEN_ARGS", "MAVEN_CONFIG",
    "GRADLE_USER_HOME", "MAKEFLAGS", "MAKEFILES", "GOFLAGS", "CC", "CXX", "LD", "CI", "SSLKEYLOGFILE", "CURL_HOME",
    "DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT", "DOCKER_CERT_PATH", "KUBECONFIG", "KUBERNETES_SERVICE_HOST",
    "SSH_AUTH_SOCK", "SSH_SK_PROVIDER",
})  # fmt: skip


def is_reserved(name: str) -> bool:
    """Whether programs obey such a variable; in any spelling, since some look for small letters, and some for both."""
    known = name.upper()
    return known in NAMES or known.startswith(FAMILIES) or known.endswith(ENDINGS)


def check(name: str, reference: str) -> None:
    """Refuse a name that was made up for what ``reference`` (path and field) is, and that nobody has written."""
    if is_reserved(name):
        raise Refusal(
            "NAME_RESERVED",
            f"A value would be called {name}, which programs obey: if that is meant, ask for "
            f"{name}=broker://{reference} by name; else give it another name in the same way.",
            Exit.USAGE,
        )
