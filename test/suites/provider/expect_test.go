package provider_test

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"software.sslmate.com/src/go-pkcs12"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/test/harness/keyvault"
)

// file is a file of a mounted volume.
type file struct {
	Mode    fs.FileMode
	Content string
}

// share is the part of a request for one vault.
type share struct {
	vault string
	items []api.Item
	// ofTLS is true if the items become a Secret of type kubernetes.io/tls.
	ofTLS bool
}

// shares splits a request's items by their vault, in the order in which the vaults are named.
func shares(request *api.Request) []share {
	var all []share
	for _, item := range request.Items {
		vault := request.VaultOf(item)
		at := slices.IndexFunc(all, func(s share) bool { return strings.EqualFold(s.vault, vault) })
		if at < 0 {
			at, all = len(all), append(all, share{vault: vault, ofTLS: request.SecretType == string(corev1.SecretTypeTLS)})
		}
		all[at].items = append(all[at].items, item)
	}
	return all
}

func kindOf(item api.Item) keyvault.Kind {
	return map[string]keyvault.Kind{
		"": keyvault.Secrets, api.TypeSecret: keyvault.Secrets, api.TypeKey: keyvault.Keys, api.TypeCert: keyvault.Certificates,
	}[item.Type]
}

// same reports whether two items name the same object. Key Vault ignores the case of names.
func same(a, b api.Item) bool {
	return kindOf(a) == kindOf(b) && strings.EqualFold(a.Name, b.Name)
}

// stock returns the objects that a share's items name, each with the requested versions, newer and
// older ones.
func (s *share) stock() []keyvault.Object {
	var objects []keyvault.Object
	for _, item := range s.items {
		if objectOf(objects, item) != nil {
			continue
		}
		ids, history := []string{"newest", "disabled"}, 0
		for _, other := range s.items {
			if !same(item, other) {
				continue
			}
			history = max(history, other.History)
			if id := strings.ToLower(other.Version); id != "" && !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
		for age := range history + 2 {
			ids = append(ids, "older "+strconv.Itoa(age))
		}
		object := keyvault.Object{Kind: kindOf(item), Name: item.Name}
		for _, id := range ids {
			object.Versions = append(object.Versions, s.version(item, id))
		}
		objects = append(objects, object)
	}
	return objects
}

// version returns a version of an item's object. If id is not a version, a version is derived from
// it.
func (s *share) version(item api.Item, id string) keyvault.Version {
	content := hashOf(s.vault, string(kindOf(item)), item.Name, id)
	v := keyvault.Version{ID: id, Disabled: id == "disabled"}
	if len(id) != 32 {
		v.ID = content[:32]
	}
	switch kindOf(item) {
	case keyvault.Keys:
		v.Public = ecKey().Public()
		if id == "newest" {
			v.Public = rsaKey().Public()
		}
	case keyvault.Certificates:
		v.DER = []byte(content)
	case keyvault.Secrets:
		v.Value = content // valid hex and valid base64, too
		if s.isCertified(item) {
			v.Value, v.Certified, v.ContentType = material().pfx, true, "application/x-pkcs12"
		}
	}
	return v
}

// isCertified decides whether a secret is the secret of a certificate: if it is for a Secret of type TLS,
// or an item requests a format for it, and none requests an encoding that does not fit a certificate.
func (s *share) isCertified(item api.Item) bool {
	formatted := s.ofTLS
	for _, other := range s.items {
		if !same(item, other) {
			continue
		}
		formatted = formatted || other.Format != ""
		if other.Encoding == "hex" || (other.Encoding == "base64" && other.Format != api.FormatPFX) {
			return false
		}
	}
	return formatted
}

func objectOf(objects []keyvault.Object, item api.Item) *keyvault.Object {
	at := slices.IndexFunc(objects, func(o keyvault.Object) bool {
		return o.Kind == kindOf(item) && strings.EqualFold(o.Name, item.Name)
	})
	if at < 0 {
		return nil
	}
	return &objects[at]
}

// files returns the expected files of the items, by path relative to the mount.
func (s *share) files(objects []keyvault.Object) (map[string]file, error) {
	files := make(map[string]file)
	for _, item := range s.items {
		mode := defaultMode
		if item.Permission != "" {
			octal, err := strconv.ParseUint(item.Permission, 8, 32)
			if err != nil {
				return nil, fmt.Errorf("read mode: %w", err)
			}
			mode = fs.FileMode(octal)
		}
		versions := versionsOf(objectOf(objects, item), item)
		for at := range versions {
			content, err := contentOf(&versions[at], item)
			if err != nil {
				return nil, err
			}
			path := item.Path()
			if item.History > 1 {
				path += "/" + strconv.Itoa(at)
			}
			files[path] = file{Mode: mode, Content: content}
		}
	}
	return files, nil
}

// versionsOf returns the versions that an item requests, newest first. The provider mounts N+1
// versions for a history of N (upstream: getLatestNKeyVaultObjects in pkg/provider).
func versionsOf(object *keyvault.Object, item api.Item) []keyvault.Version {
	versions := object.Versions
	if item.Version != "" {
		versions = versions[slices.IndexFunc(versions, func(v keyvault.Version) bool { return strings.EqualFold(v.ID, item.Version) }):]
	}
	if item.History <= 1 {
		return versions[:1]
	}
	enabled := slices.DeleteFunc(slices.Clone(versions), func(v keyvault.Version) bool { return v.Disabled })
	return enabled[:min(item.History+1, len(enabled))]
}

// contentOf returns the expected file content of a version.
func contentOf(version *keyvault.Version, item api.Item) (string, error) {
	switch kindOf(item) {
	case keyvault.Keys:
		der, err := x509.MarshalPKIXPublicKey(version.Public)
		if err != nil {
			return "", fmt.Errorf("print key: %w", err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), nil
	case keyvault.Certificates:
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: version.DER})), nil
	case keyvault.Secrets:
	}
	text := version.Value
	if version.Certified && item.Format != api.FormatPFX {
		text = material().pem
	}
	var content []byte
	var err error
	switch item.Encoding {
	case "base64":
		content, err = base64.StdEncoding.DecodeString(text)
	case "hex":
		content, err = hex.DecodeString(text)
	default:
		return text, nil
	}
	if err != nil {
		return "", fmt.Errorf("decode secret: %w", err)
	}
	return string(content), nil
}

// reads returns the requests that a vault must get, sorted.
func (s *share) reads(objects []keyvault.Object, by keyvault.Identity) []keyvault.Read {
	var reads []keyvault.Read
	for _, item := range s.items {
		read := keyvault.Read{Vault: strings.ToLower(s.vault), Kind: kindOf(item), Name: item.Name, Version: strings.ToLower(item.Version), By: by, Status: 200}
		if item.History <= 1 {
			reads = append(reads, read)
			continue
		}
		object := objectOf(objects, item)
		page := read
		page.Version, page.List = "", true
		for range (len(object.Versions) + 24) / 25 {
			reads = append(reads, page)
		}
		for _, version := range versionsOf(object, item) {
			read.Version = version.ID
			reads = append(reads, read)
		}
	}
	slices.SortFunc(reads, compareReads)
	return reads
}

func compareReads(a, b keyvault.Read) int {
	return cmp.Compare(fmt.Sprintf("%+v", a), fmt.Sprintf("%+v", b))
}

// hashOf returns 64 hex digits, a hash of all parts.
func hashOf(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.ToLower(strings.Join(parts, "\x00"))))
	return hex.EncodeToString(sum[:])
}

var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func ecKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

// forms are a certificate and its key in the form that Key Vault stores, base64, and in the form
// that the provider writes.
type forms struct {
	pfx, pem string
	// key and certificate are the parts of pem, as the driver writes them into a Secret of type TLS: the
	// key of RSA in PKCS #1 (upstream: getPrivateKey in pkg/util/secretutil).
	key, certificate string
}

var material = sync.OnceValue(func() forms {
	key := rsaKey()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "edge"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pfx, err := pkcs12.LegacyDES.Encode(key, certificate, nil, "")
	if err != nil {
		panic(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err)
	}
	pemOf := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	f := forms{
		pfx: base64.StdEncoding.EncodeToString(pfx),
		key: pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)), certificate: pemOf("CERTIFICATE", der),
	}
	f.pem = pemOf("PRIVATE KEY", pkcs8) + f.certificate
	return f
})
