// Package reviews has AdmissionReviews of the creation of pods, byte for byte as a kube-apiserver
// 1.37 sent them for the pods of three Deployments: with managedFields, defaults, the
// ServiceAccount's token volume and default tolerations. Benchmarks and load tests send them:
//
//	for _, r := range reviews.All() {
//		http.Post(url, "application/json", bytes.NewReader(r.Body))
//
// The package is only for tests.
package reviews

import (
	"bytes"
	_ "embed" // the recorded reviews
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/internal/corpus"
)

// Review is one recorded review.
type Review struct {
	// Size is the approximate size, for tables.
	Size string
	// Body is the AdmissionReview, compact JSON.
	Body []byte
}

var (
	//go:embed 3k.json
	small []byte
	//go:embed 11k.json
	medium []byte
	//go:embed 64k.json
	large []byte
)

// Cluster has the objects of the namespace when the reviews were recorded, as YAML documents:
// everything that the pods request.
//
//go:embed cluster.yaml
var Cluster []byte

// The recorded reviews.
var (
	// Small is of a pod with one container: one object of an existing class, bound by AAD pod
	// identity.
	Small = Review{"3k", bytes.TrimSpace(small)}
	// Medium is of a pod with an init container, an application and a sidecar: three objects of an
	// existing class, each an env var, and workload identity.
	Medium = Review{"11k", bytes.TrimSpace(medium)}
	// Large is of a pod with an init container and seven others: fifteen objects of two vaults, in
	// managed classes, and workload identity.
	Large = Review{"64k", bytes.TrimSpace(large)}
)

// All are the recorded reviews, from the smallest.
func All() []Review {
	return []Review{Small, Medium, Large}
}

// Request has the fields of a review that the handlers of benchmarks read.
type Request struct {
	UID       types.UID  `json:"uid"`
	Namespace string     `json:"namespace"`
	Object    corev1.Pod `json:"object"`
	// Pod is Object as the injector decodes it.
	Pod pods.Pod `json:"-"`
}

// Request decodes the review.
func (r Review) Request() (*Request, error) {
	var review struct {
		Request Request `json:"request"`
	}
	var raw struct {
		Request struct {
			Object jsontext.Value `json:"object"`
		} `json:"request"`
	}
	err := errors.Join(json.Unmarshal(r.Body, &review), json.Unmarshal(r.Body, &raw))
	if err == nil {
		err = pods.Decode(raw.Request.Object, &review.Request.Pod)
	}
	if err != nil {
		return nil, fmt.Errorf("decode review %s: %w", r.Size, err)
	}
	return &review.Request, nil
}

// Facts returns a source with the objects of [Cluster].
func Facts() (*facts.Objects, error) {
	objects, err := corpus.Decode(Cluster)
	if err != nil {
		return nil, fmt.Errorf("decode the cluster: %w", err)
	}
	var source facts.Objects
	for _, object := range objects {
		if err := source.Add(object, ""); err != nil {
			return nil, err
		}
	}
	return &source, nil
}

// Echo is a webhook with the least possible work, for comparison: it reads the review, finds its
// UID, and allows the object.
func Echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_, rest, _ := bytes.Cut(body, []byte(`"uid":"`))
	uid, _, _ := bytes.Cut(rest, []byte(`"`))
	answer := append([]byte(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","response":{"uid":"`), uid...)
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(answer, `","allowed":true}}`...)) // the client may have closed the connection
}
