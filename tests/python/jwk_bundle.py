"""Reads a SPIFFE bundle with a library for JWK sets, and holds its key against a file of roots (PEM)."""

import base64
import json
import ssl
import sys

from jwcrypto import jwk

text = open(sys.argv[1]).read()
keys = list(jwk.JWKSet.from_json(text)["keys"])
for key, raw in zip(sorted(keys, key=lambda key: key.thumbprint()), json.loads(text)["keys"]):
    assert raw["use"] == "x509-svid", raw
certificates = [base64.b64decode(raw["x5c"][0]) for raw in json.loads(text)["keys"]]
pem = open(sys.argv[2]).read()
root = jwk.JWK.from_pem(pem.encode())
assert ssl.PEM_cert_to_DER_cert(pem) in certificates, "the certificate is another one"
same = {key.thumbprint() for key in keys} == {root.thumbprint()}
print(len(keys), "root," if len(keys) == 1 else "roots,", "the same key" if same else "another key")
