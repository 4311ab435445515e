package ha

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/internal/corpus/attacks"
	"github.com/akv-injector/akv-injector/test/harness/measure"
	"github.com/akv-injector/akv-injector/test/harness/process"
	"github.com/akv-injector/akv-injector/webhook"
)

// The namespaces of a tenant that attacks.
const (
	tenant  = "tenant"  // opted in, with a ceiling that is not enforced
	outside = "outside" // not opted in
)

const tenantObjects = `
apiVersion: v1
kind: Namespace
metadata:
  name: ` + tenant + `
  labels: {keyvault.io/injection: enabled, identity.io/warn: required}
  annotations: {identity.io/allowed-names: "team-*"}
---
apiVersion: v1
kind: Namespace
metadata: {name: ` + outside + `}
`

// attack is a kind of request that may cost the server more than the sender.
type attack struct {
	name    string
	strikes []strike
	// limit is the maximum number of requests. Zero means no maximum.
	limit int64
}

// strike is one request.
type strike struct {
	*target

	path string
	body []byte
	slow bool // send one byte per second
}

// target is a server that is attacked.
type target struct {
	address string
	tls     *tls.Config
	header  string
}

// controls is the number of controls. They are the first attacks.
const controls = 2

// attacks returns the attacks of a tenant through the API server, and those of any pod that can
// reach the webhook port. The first control attacks the server at the address echo instead.
func (c *cluster) attacks(ctx context.Context, echo string) ([]attack, error) {
	config, err := rest.TLSConfigFor(c.plane.Config)
	if err != nil {
		return nil, fmt.Errorf("attack the API server: %w", err)
	}
	config.NextProtos = nil // HTTP/1.1
	apiServer := &target{
		address: strings.TrimPrefix(c.plane.Config.Host, "https://"), tls: config,
		header: "Authorization: Bearer " + c.plane.Config.BearerToken + "\r\n",
	}
	var replicas []*target
	for _, r := range c.replicas {
		// An attacker verifies no certificate.
		replicas = append(replicas, &target{address: r.Address, tls: &tls.Config{InsecureSkipVerify: true}})
	}
	// reviews sends bodies to all replicas. pods creates pods through the API server, with query
	// for a dry run.
	reviews := func(path string, bodies ...[]byte) (strikes []strike) {
		for _, body := range bodies {
			for _, replica := range replicas {
				strikes = append(strikes, strike{target: replica, path: path + "?timeout=5s", body: body})
			}
		}
		return strikes
	}
	pods := func(namespace, query string, pods ...object) (strikes []strike) {
		for _, pod := range pods {
			strikes = append(strikes, strike{target: apiServer, path: "/api/v1/namespaces/" + namespace + "/pods" + query, body: pod.json()})
		}
		return strikes
	}

	var annotated []object
	var annotatedReviews [][]byte
	for _, name := range slices.Sorted(maps.Keys(attacks.Secrets)) {
		pod := pod(object{"annotations": object{"keyvault.io/secrets": attacks.Secrets[name], "identity.io/mode": "none"}})
		annotated = append(annotated, pod)
		annotatedReviews = append(annotatedReviews, review(tenant, pod))
	}

	var classes []object
	var mounting []object
	for i, name := range slices.Sorted(maps.Keys(attacks.Objects)) {
		class := fmt.Sprintf("attack-%d", i)
		classes = append(classes, object{
			"apiVersion": "secrets-store.csi.x-k8s.io/v1", "kind": "SecretProviderClass", "metadata": object{"name": class, "namespace": tenant},
			"spec": object{"provider": "azure", "parameters": object{"objects": attacks.Objects[name]}},
		})
		mounting = append(mounting, pod(nil, class))
	}
	classList := object{"apiVersion": "v1", "kind": "List", "items": classes}
	for _, objects := range []string{tenantObjects, string(classList.json())} {
		if err := c.plane.RunKubectl(ctx, objects, "create", "--filename=-"); err != nil {
			return nil, err
		}
	}
	for _, namespace := range []string{tenant, outside} {
		if err := c.plane.WaitForServiceAccount(ctx, namespace); err != nil {
			return nil, err
		}
	}

	var unknown, others [][]byte
	for i := range 20 {
		var names []string
		for n := range 400 {
			names = append(names, fmt.Sprintf("unknown-%d-%d", i, n))
		}
		unknown = append(unknown, review(namespace, pod(nil, names...)))
		others = append(others, review(namespace, pod(nil, "checkout"+strings.Repeat("x", i%2))))
	}

	long := strings.Repeat("x", 7_000_000)
	large := pod(nil)
	large["spec"] = object{"containers": []object{{"name": "app", "image": image, "args": []string{strings.Repeat("<", 1_300_000)}}}}
	empty := []byte(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"x","operation":"CREATE","namespace":"` + tenant +
		`","object":{"spec":{"containers":[` + strings.Repeat("{},", 2_400_000) + `{}]}}}}`)
	forged := pod(object{
		"labels":      object{"keyvault.io/injected": "true"},
		"annotations": object{"filler": strings.Repeat("x", 255<<10)},
	}, "kv-0123456789")

	slow := reviews(webhook.MutatePods, review(tenant, pod(nil)))
	for i := range slow {
		slow[i].slow = true
	}
	const dryRun = "?dryRun=All"
	echoed := reviews(webhook.MutatePods, others...)
	for i := range echoed {
		echoed[i].target = &target{address: echo, tls: replicas[0].tls}
	}
	return []attack{
		{name: "control: reviews at a bare TLS server", strikes: echoed},
		{name: "control: YAML in annotations, at the API server, in a namespace that has not opted in", strikes: pods(outside, dryRun, annotated...)},
		{name: "YAML in annotations, at the API server", strikes: pods(tenant, dryRun, annotated...)},
		{name: "YAML in annotations", strikes: reviews(webhook.MutatePods, annotatedReviews...)},
		{name: "7 MB of empty containers", strikes: reviews(webhook.MutatePods, empty)},
		{name: "classes of 1.4 MB, at the API server", strikes: pods(tenant, dryRun, mounting...)},
		{name: "classes that do not exist", strikes: reviews(webhook.ValidatePods, unknown...)},
		{name: "pods of 255 KB that look injected, at the API server", strikes: pods(outside, "", forged), limit: 280},
		{name: "pods with 1.3 MB of <, at the API server", strikes: pods(tenant, dryRun, large)},
		{name: "7 MB in kind and operation", strikes: reviews(webhook.MutatePods,
			object{"kind": long, "apiVersion": "admission.k8s.io/v1", "request": object{"uid": "x"}}.json(),
			object{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": object{"uid": "x", "operation": long}}.json(),
		)},
		{name: "reviews of another namespace", strikes: reviews(webhook.MutatePods, others...)},
		{name: "bodies that arrive slowly", strikes: slow},
	}, nil
}

// object is a JSON object.
type object map[string]any

func (o object) json() []byte {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(o); err != nil {
		panic(err) // objects consist of strings, lists and maps
	}
	return text.Bytes()
}

// pod returns a pod with metadata that mounts classes.
func pod(metadata object, classes ...string) object {
	if metadata == nil {
		metadata = object{}
	}
	metadata["generateName"] = "attack-"
	var volumes []object
	for i, class := range classes {
		volumes = append(volumes, object{"name": fmt.Sprintf("v%d", i), "csi": object{
			"driver": "secrets-store.csi.k8s.io", "readOnly": true, "volumeAttributes": object{"secretProviderClass": class},
		}})
	}
	return object{
		"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
		"spec": object{"containers": []object{{"name": "app", "image": image}}, "volumes": volumes},
	}
}

// review returns the AdmissionReview of the creation of a pod.
func review(namespace string, pod object) []byte {
	return object{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": object{
		"uid": "x", "kind": metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}, "namespace": namespace, "operation": "CREATE", "object": pod,
	}}.json()
}

// send starts senders, each of which sends the strikes of one attack in turns until ctx ends. It
// returns the HTTP status of each answer. The caller must receive all of them.
//
// Each sender has its own address and runs on a thread of the lowest priority, because in a cluster
// the senders do not share the CPUs of the servers.
func send(ctx context.Context, attacks []attack, senders int) <-chan string {
	answers := make(chan string, 100)
	var running sync.WaitGroup
	left := make([]atomic.Int64, len(attacks))
	for i, a := range attacks {
		left[i].Store(a.limit)
	}
	for i := range senders {
		a, left := attacks[i%len(attacks)], &left[i%len(attacks)]
		running.Go(func() {
			measure.LowerPriority()
			s := &sender{net.IPv4(127, 0, 1, byte(i+1)), map[*target]*connection{}}
			defer s.close()
			for n := i; a.limit == 0 || left.Add(-1) >= 0; n++ {
				answer, err := s.send(ctx, a.strikes[n%len(a.strikes)])
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					answer = "none"
				}
				answers <- answer
			}
		})
	}
	go func() {
		running.Wait()
		close(answers)
	}()
	return answers
}

// sender sends from one address, with one connection to each target. It reads and writes on its own
// thread, unlike [http.Transport], which uses other goroutines.
type sender struct {
	from        net.IP
	connections map[*target]*connection
}

type connection struct {
	net.Conn

	answers *bufio.Reader
}

func (s *sender) close() {
	for _, c := range s.connections {
		_ = c.Close() // nothing is left to send
	}
}

// send sends a request and returns the status of the answer.
func (s *sender) send(ctx context.Context, k strike) (status string, err error) {
	c := s.connections[k.target]
	if c == nil {
		dialer := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: s.from}}, Config: k.tls}
		dialed, err := dialer.DialContext(ctx, "tcp", k.address)
		if err != nil {
			return "", err
		}
		c = &connection{dialed, bufio.NewReader(dialed)}
		s.connections[k.target] = c
	}
	status, open, err := c.send(ctx, k)
	if !open {
		delete(s.connections, k.target)
		_ = c.Close()
	}
	return status, err
}

// send sends a request. It returns the status of the answer, and whether the connection stays open.
func (c *connection) send(ctx context.Context, k strike) (status string, open bool, err error) {
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	// A server may answer before it has read everything, and close the connection.
	_, sendErr := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: %s\r\n%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
		k.path, k.address, k.header, len(k.body))
	body := k.body
	for k.slow && sendErr == nil && ctx.Err() == nil && len(body) > 1 {
		_, sendErr = c.Write(body[:1])
		body = body[1:]
		_ = process.Sleep(ctx, time.Second)
	}
	if sendErr == nil {
		_, sendErr = io.Copy(c, bytes.NewReader(body))
	}
	response, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		return "", false, err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return strconv.Itoa(response.StatusCode), err == nil && sendErr == nil && !response.Close, err
}
