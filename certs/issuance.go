package certs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/cert-manager/cert-manager/pkg/apis/certmanager"
	certmanagerv1 "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	certmanagermetav1 "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	certmanagerclient "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned/typed/certmanager/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// readTimeout is the timeout for reading cert-manager's objects. A new certificate is not
	// served meanwhile.
	readTimeout = 5 * time.Second
	// again ends the delay of cert-manager after a failure, which is an hour or more.
	again = "then `cmctl renew %s -n %s`, or wait: cert-manager tries again after an hour, and after each failure later"
)

// An issuance finds out from cert-manager's objects why a Certificate has not been issued. It reads
// objects when needed and does not watch them, because their kinds may not exist yet.
type issuance struct {
	client                         certmanagerclient.CertmanagerV1Interface
	namespace, certificate, secret string
}

// trouble returns the first obstacle, in the order in which a certificate is issued.
func (i issuance) trouble(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	what := "Certificate " + i.namespace + "/" + i.certificate
	cert, err := i.client.Certificates(i.namespace).Get(ctx, i.certificate, metav1.GetOptions{})
	if err != nil {
		return unread(what, err, "create it, or name another by --certificate")
	}
	if got := cert.Spec.SecretName; got != i.secret {
		return fmt.Errorf("%s keeps its certificate in Secret %s; "+
			"set its spec.secretName to %s, or --certificate-secret to %s", what, got, i.secret, got)
	}
	issuer, err := i.issuer(ctx, cert.Spec.IssuerRef)
	if err != nil {
		return err
	}
	if err := i.request(ctx, cert, issuer); err != nil {
		return err
	}
	return i.status(what, cert)
}

// issuer returns the kind and name of an issuer, or why an Issuer or ClusterIssuer issues nothing.
func (i issuance) issuer(ctx context.Context, ref certmanagermetav1.IssuerReference) (what string, err error) {
	kind := cmp.Or(ref.Kind, certmanagerv1.IssuerKind)
	if ref.Group != "" && ref.Group != certmanager.GroupName {
		return kind + "." + ref.Group + " " + ref.Name, nil // an external issuer, which the injector may not read
	}
	var status certmanagerv1.IssuerStatus
	switch kind {
	case certmanagerv1.IssuerKind:
		what = kind + " " + i.namespace + "/" + ref.Name
		var issuer *certmanagerv1.Issuer
		if issuer, err = i.client.Issuers(i.namespace).Get(ctx, ref.Name, metav1.GetOptions{}); err == nil {
			status = issuer.Status
		}
	case certmanagerv1.ClusterIssuerKind:
		what = kind + " " + ref.Name
		var issuer *certmanagerv1.ClusterIssuer
		if issuer, err = i.client.ClusterIssuers().Get(ctx, ref.Name, metav1.GetOptions{}); err == nil {
			status = issuer.Status
		}
	default:
		return "", fmt.Errorf("issuerRef of Certificate %s/%s: kind must be %s or %s, is %q",
			i.namespace, i.certificate, certmanagerv1.IssuerKind, certmanagerv1.ClusterIssuerKind, kind)
	}
	if err != nil {
		return "", unread(what, err, "create it, or name another in the Certificate's issuerRef")
	}
	for _, c := range status.Conditions {
		if c.Type == certmanagerv1.IssuerConditionReady && c.Status == certmanagermetav1.ConditionTrue {
			return what, nil
		} else if c.Type == certmanagerv1.IssuerConditionReady {
			return "", fmt.Errorf("%s is not ready: %s; fix it", what, said(c.Reason, c.Message))
		}
	}
	return "", fmt.Errorf("%s has no condition Ready; does cert-manager's controller run?", what)
}

// request returns why the newest CertificateRequest of cert was not granted, or nil.
func (i issuance) request(ctx context.Context, cert *certmanagerv1.Certificate, issuer string) error {
	list, err := i.client.CertificateRequests(i.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return unread("CertificateRequests in "+i.namespace, err, "")
	}
	own := slices.DeleteFunc(list.Items, func(r certmanagerv1.CertificateRequest) bool {
		return !metav1.IsControlledBy(&r, cert)
	})
	if len(own) == 0 {
		return nil
	}
	newest := slices.MaxFunc(own, func(a, b certmanagerv1.CertificateRequest) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(revision(a), revision(b)))
	})
	what := "CertificateRequest " + i.namespace + "/" + newest.Name
	conditions := map[certmanagerv1.CertificateRequestConditionType]certmanagerv1.CertificateRequestCondition{}
	for _, c := range newest.Status.Conditions {
		conditions[c.Type] = c
	}
	holds := func(t certmanagerv1.CertificateRequestConditionType) (certmanagerv1.CertificateRequestCondition, bool) {
		return conditions[t], conditions[t].Status == certmanagermetav1.ConditionTrue
	}
	renew := fmt.Sprintf(again, i.certificate, i.namespace)
	if c, ok := holds(certmanagerv1.CertificateRequestConditionDenied); ok {
		// cert-manager deletes failed requests before it creates another, but keeps denied
		// ones.
		return fmt.Errorf("%s was denied: %s; have such requests approved, delete this one, %s",
			what, said(c.Reason, c.Message), renew)
	}
	if c, ok := holds(certmanagerv1.CertificateRequestConditionInvalidRequest); ok {
		return fmt.Errorf("%s is invalid: %s; change the Certificate to what %s accepts",
			what, said(c.Reason, c.Message), issuer)
	}
	ready, issued := holds(certmanagerv1.CertificateRequestConditionReady)
	_, approved := holds(certmanagerv1.CertificateRequestConditionApproved)
	switch {
	case issued:
		return nil
	case ready.Reason == certmanagerv1.CertificateRequestReasonFailed:
		return fmt.Errorf("%s failed: %s; fix %s, %s", what, said("", ready.Message), issuer, renew)
	case !approved:
		return fmt.Errorf("%s waits for approval; "+
			"does cert-manager's approver, or the one that replaces it, run and know its issuer?", what)
	case ready.Reason == "":
		return fmt.Errorf("%s waits for %s; does its controller run?", what, issuer)
	}
	return fmt.Errorf("%s waits for %s: %s", what, issuer, said(ready.Reason, ready.Message))
}

// status returns the obstacle that the Certificate's own conditions report.
func (i issuance) status(what string, cert *certmanagerv1.Certificate) error {
	var ready, issuing certmanagerv1.CertificateCondition
	for _, c := range cert.Status.Conditions {
		switch c.Type {
		case certmanagerv1.CertificateConditionReady:
			ready = c
		case certmanagerv1.CertificateConditionIssuing:
			issuing = c
		}
	}
	switch {
	case issuing.Status == certmanagermetav1.ConditionTrue:
		return fmt.Errorf("%s is being issued: %s", what, said(issuing.Reason, issuing.Message))
	case cert.Status.LastFailureTime != nil && issuing.Message != "":
		renew := fmt.Sprintf(again, i.certificate, i.namespace)
		return fmt.Errorf("%s was not issued: %s; fix that, %s", what, said(issuing.Reason, issuing.Message), renew)
	case ready.Status == "":
		return fmt.Errorf("%s has no condition Ready; does cert-manager's controller run?", what)
	case ready.Status != certmanagermetav1.ConditionTrue:
		return fmt.Errorf("%s is not ready: %s", what, said(ready.Reason, ready.Message))
	}
	return fmt.Errorf("%s is ready, says cert-manager; "+
		"its controller writes a deleted or damaged Secret again when it runs", what)
}

// unread returns what a failed read means.
func unread(what string, err error, remedy string) error {
	switch {
	case apierrors.IsNotFound(err) && apierrors.IsUnexpectedServerError(err): // the path was not found, not the object
		return errors.New("cert-manager is not installed: the API server does not know its kinds; " +
			"install it, or choose another --certs")
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%s does not exist; %s", what, remedy)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%s could not be read to say why; the injector's role lacks that: %w", what, err)
	}
	return fmt.Errorf("read %s: %w", what, err)
}

// said returns the message and reason of a condition.
func said(reason, message string) string {
	switch {
	case message == "":
		return cmp.Or(reason, "without a reason")
	case reason == "":
		return message
	}
	return message + " (" + reason + ")"
}

func revision(r certmanagerv1.CertificateRequest) int {
	n, err := strconv.Atoi(r.Annotations[certmanagerv1.CertificateRequestRevisionAnnotationKey])
	if err != nil {
		return 0
	}
	return n
}
