package keyvault

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Vault is a Key Vault.
type Vault struct {
	// Tenant is the tenant whose tokens the vault accepts.
	Tenant string
	// Readers are the client IDs that may read the vault.
	Readers []string
	Objects []Object
	// Suffix is that of its host; empty for [VaultSuffix].
	Suffix string
}

// Kind is a kind of object, as in the paths of Key Vault.
type Kind string

// The kinds of object.
const (
	Secrets      Kind = "secrets"
	Keys         Kind = "keys"
	Certificates Kind = "certificates"
)

// Object is an object with its versions, newest first.
type Object struct {
	Kind     Kind
	Name     string
	Versions []Version
}

// Version is one version of an object. A secret has Value, a key has Public, a certificate has DER.
type Version struct {
	// ID is 32 hexadecimal digits in lower case.
	ID string
	// Disabled means that the version is listed but cannot be read.
	Disabled bool
	Value    string
	// Certified means that the secret belongs to a certificate. ContentType is the format of Value.
	Certified   bool
	ContentType string
	// Public is an RSA key, or an ECDSA key on the curve P-256.
	Public crypto.PublicKey
	DER    []byte
}

// newest is the creation time of the newest version of every object. Each older version is an hour
// older than the next.
var newest = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)

// pageSize is the number of versions on a page, as in Azure.
const pageSize = 25

// serveVault answers GET /KIND/NAME[/VERSION] and GET /KIND/NAME/versions.
func (a *Azure) serveVault(w http.ResponseWriter, r *http.Request, name string, c cloud) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	a.mu.Lock()
	vault, known := a.vaults[name]
	a.mu.Unlock()
	known = known && c.vaultSuffix == cmp.Or(vault.Suffix, VaultSuffix)
	if !known || r.Method != http.MethodGet || len(parts) < 2 || len(parts) > 3 || r.URL.Query().Get("api-version") == "" {
		a.stray(w, r) // a vault that does not exist has no address
		return
	}
	read := Read{Vault: name, Kind: Kind(parts[0]), Name: parts[1]}
	if len(parts) == 3 {
		read.Version = parts[2]
	}
	if read.Version == "versions" {
		read.Version, read.List = "", true
	}
	status, body := a.read(&vault, &read, r)
	read.Status = status
	a.mu.Lock()
	a.record.Reads = append(a.record.Reads, read)
	a.mu.Unlock()
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer authorization=%q, resource=%q", "https://"+c.entraHost+"/"+vault.Tenant, c.resource))
	}
	answer(w, status, body)
}

func (a *Azure) read(vault *Vault, read *Read, r *http.Request) (status int, body object) {
	text, sent := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	a.mu.Lock()
	by, known := a.tokens[text]
	a.mu.Unlock()
	read.By = by
	switch {
	case !sent:
		return failure(http.StatusUnauthorized, "Unauthorized", "AKV10000: Request is missing a Bearer or PoP token.")
	case !known:
		return failure(http.StatusUnauthorized, "Unauthorized", "AKV10022: Invalid audience.")
	case by.Tenant != vault.Tenant:
		return failure(http.StatusUnauthorized, "Unauthorized", "AKV10032: Invalid issuer. Expected https://sts.windows.net/"+vault.Tenant+"/, found https://sts.windows.net/"+by.Tenant+"/.")
	case !slices.Contains(vault.Readers, by.ClientID):
		return failure(http.StatusForbidden, "Forbidden", "Caller is not authorized to perform action on resource. appid="+by.ClientID)
	}
	singular := map[Kind]string{Secrets: "Secret", Keys: "Key", Certificates: "Certificate"}[read.Kind]
	notFound := func() (int, object) {
		return failure(http.StatusNotFound, singular+"NotFound",
			"A "+strings.ToLower(singular)+" with (name/id) "+strings.Trim(read.Name+"/"+read.Version, "/")+" was not found in this key vault.")
	}
	// Names and versions in Key Vault are case-insensitive.
	at := slices.IndexFunc(vault.Objects, func(o Object) bool { return o.Kind == read.Kind && strings.EqualFold(o.Name, read.Name) })
	if singular == "" || at < 0 || len(vault.Objects[at].Versions) == 0 {
		return notFound()
	}
	object := &vault.Objects[at]
	if read.List {
		return object.page(read.Vault, r)
	}
	at = 0
	if read.Version != "" {
		at = slices.IndexFunc(object.Versions, func(v Version) bool { return strings.EqualFold(v.ID, read.Version) })
	}
	switch {
	case at < 0:
		return notFound()
	case object.Versions[at].Disabled:
		return failure(http.StatusForbidden, "Forbidden", "Operation get is not allowed on a disabled "+strings.ToLower(singular)+".")
	}
	return http.StatusOK, object.bundle(read.Vault, at)
}

func failure(status int, code, message string) (int, object) {
	return status, object{"error": object{"code": code, "message": message}}
}

// id returns the address of a version.
func (o *Object) id(vault string, kind Kind, at int) string {
	return "https://" + vault + VaultSuffix + "/" + string(kind) + "/" + o.Name + "/" + o.Versions[at].ID
}

func (o *Object) attributes(at int) object {
	created := newest.Add(-time.Duration(at) * time.Hour).Unix()
	return object{"enabled": !o.Versions[at].Disabled, "created": created, "updated": created, "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90}
}

// bundle returns a version with its content.
func (o *Object) bundle(vault string, at int) object {
	v := &o.Versions[at]
	body := object{"attributes": o.attributes(at)}
	switch o.Kind {
	case Secrets:
		body["id"], body["value"] = o.id(vault, Secrets, at), v.Value
		if v.ContentType != "" {
			body["contentType"] = v.ContentType
		}
		if v.Certified {
			body["kid"], body["managed"] = o.id(vault, Keys, at), true
		}
	case Keys:
		key := webKey(v.Public)
		key["kid"] = o.id(vault, Keys, at)
		body["key"] = key
	case Certificates:
		body["id"], body["kid"], body["sid"] = o.id(vault, Certificates, at), o.id(vault, Keys, at), o.id(vault, Secrets, at)
		body["cer"] = v.DER // as base64
	}
	return body
}

// webKey returns a public key as a JSON Web Key (RFC 7518, section 6).
func webKey(public crypto.PublicKey) object {
	text := base64.RawURLEncoding.EncodeToString
	switch public := public.(type) {
	case *rsa.PublicKey:
		return object{"kty": "RSA", "n": text(public.N.Bytes()), "e": text(big.NewInt(int64(public.E)).Bytes())}
	case *ecdsa.PublicKey:
		point, err := public.Bytes() // 4, then both coordinates
		if err != nil {
			return object{"kty": "none"}
		}
		half := len(point) / 2
		return object{"kty": "EC", "crv": public.Params().Name, "x": text(point[1 : 1+half]), "y": text(point[1+half:])}
	}
	return object{"kty": "none"}
}

// page returns a page of versions, sorted by ID: Azure does not guarantee an order.
func (o *Object) page(vault string, r *http.Request) (status int, body object) {
	order := make([]int, len(o.Versions))
	for at := range order {
		order[at] = at
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(o.Versions[a].ID, o.Versions[b].ID) })
	query := r.URL.Query()
	start, _ := strconv.Atoi(query.Get("$skiptoken"))
	start = min(max(start, 0), len(order))
	end := min(start+pageSize, len(order))
	value := []object{}
	for _, at := range order[start:end] {
		name := "id"
		if o.Kind == Keys {
			name = "kid"
		}
		value = append(value, object{name: o.id(vault, o.Kind, at), "attributes": o.attributes(at)})
	}
	body = object{"value": value, "nextLink": nil}
	if end < len(order) {
		query.Set("$skiptoken", strconv.Itoa(end))
		body["nextLink"] = "https://" + vault + VaultSuffix + "/" + string(o.Kind) + "/" + o.Name + "/versions?" + query.Encode()
	}
	return http.StatusOK, body
}
