package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/akv-injector/akv-injector/test/harness/keyvault"
	"github.com/akv-injector/akv-injector/test/harness/node"
)

const (
	tenant = "72f988bf-86f1-41af-91ab-2d7cd011db47"
	// blobAccess is the client ID of the managed identity that may read the vaults.
	blobAccess = "11111111-2222-3333-4444-555555555555"
	secret     = "super secret for 425 show"
	version    = "0123456789abcdef0123456789abcdef"
	// nextVersion is the second version of secrets that have two.
	nextVersion = "fedcba9876543210fedcba9876543210"
	// vault is the name of the first vault.
	vault = "nf425csi"
)

// fakeAzure returns the content of the fake Azure, the image of the pods and the arguments of the
// driver.
func fakeAzure() (node.Options, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return node.Options{}, fmt.Errorf("create a key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "edge"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return node.Options{}, fmt.Errorf("create a certificate: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return node.Options{}, fmt.Errorf("print a key: %w", err)
	}
	both := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})) +
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}))
	return node.Options{
		Tenant:    tenant,
		Federated: map[string][]string{"shop/blob-sa": {blobAccess}},
		Vaults: map[string]keyvault.Vault{
			vault: vaultWith(
				keyvault.Object{Kind: keyvault.Secrets, Name: "secret-425", Versions: []keyvault.Version{{ID: version, Value: secret}}},
				keyvault.Object{Kind: keyvault.Secrets, Name: "db-password", Versions: []keyvault.Version{{ID: version, Value: "winter"}}},
				keyvault.Object{Kind: keyvault.Secrets, Name: "session-keys", Versions: []keyvault.Version{{ID: nextVersion, Value: "today's"}, {ID: version, Value: "yesterday's"}}},
				keyvault.Object{Kind: keyvault.Keys, Name: "edge-key", Versions: []keyvault.Version{{ID: version, Public: key.Public()}}},
			),
			"shared-kv": vaultWith(
				keyvault.Object{Kind: keyvault.Certificates, Name: "edge-ca", Versions: []keyvault.Version{{ID: version, DER: certificate}}},
				// The secret behind a certificate also has the private key.
				keyvault.Object{Kind: keyvault.Secrets, Name: "edge-ca", Versions: []keyvault.Version{
					{ID: version, Value: both, Certified: true, ContentType: "application/x-pem-file"},
				}},
			),
			paymentsVault:  payments("db-password"),
			vaultOf("one"): vaultWith(),
			vaultOf("ten"): vaultWith(),
		},
		Images:     []string{"nginx"},
		DriverArgs: []string{"--enable-secret-rotation=true", fmt.Sprint("--rotation-poll-interval=", pollInterval())},
	}, nil
}

// vaultWith returns a vault that the managed identity may read.
func vaultWith(objects ...keyvault.Object) keyvault.Vault {
	return keyvault.Vault{Tenant: tenant, Readers: []string{blobAccess}, Objects: objects}
}

// pollInterval returns the driver's rotation interval. It is a millisecond, so that the driver
// reads the vault on each call of the kubelet, except when the part rotation measures the interval.
func pollInterval() time.Duration {
	if slices.Contains(flag.Args(), measureRotation) {
		return *rotationInterval
	}
	return time.Millisecond
}
