"""The HSM edge: the ``Hsm`` port on a PKCS#11 module. PKCS#11's words stay in this folder."""
