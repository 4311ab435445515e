package rotation

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/akv-injector/akv-injector/core/api"
)

// simulated is a cluster with one workload. Its pods use the objects env and part, and only mount the
// file of the object file.
type simulated struct {
	now      int64
	vault    map[string]int
	own      string // the annotation of the workload
	template string // that of its template
	pods     []simulatedPod
	rollouts int
	// stale has the pods and statuses as an earlier step saw them, for a replica that lags.
	stale []simulatedPod
}

type simulatedPod struct {
	restartedFor string
	status       status
	started      map[string]int // the versions that its containers have
}

var simulatedUses = []use{
	{class: "kv", id: "secret/env", object: "vault/secret/env", synced: true},
	{class: "kv", id: "secret/part", object: "vault/secret/part"},
}

func (c *simulated) versions() []objectVersion {
	var versions []objectVersion
	for _, name := range []string{"env", "part", "file"} {
		versions = append(versions, objectVersion{share("secret/" + name), share(fmt.Sprint("v", c.vault[name]))})
	}
	return versions
}

// start returns a new pod.
func (c *simulated) start() simulatedPod {
	p := simulatedPod{restartedFor: c.template, started: map[string]int{}}
	p.status = status{class: share("kv"), created: c.now, changed: c.now, versions: c.versions()}
	maps.Copy(p.started, c.vault)
	return p
}

// publish lets the driver read the vault for a pod.
func (c *simulated) publish(p *simulatedPod) {
	if versions := c.versions(); !slices.Equal(versions, p.status.versions) {
		p.status.versions, p.status.changed = versions, c.now
	}
}

// review is a review by a replica that sees the pods as they are in seen. It has read the workload
// just before.
func (c *simulated) review(seen []simulatedPod, waits bool) {
	var own, all []status
	for _, p := range seen {
		all = append(all, p.status)
		if p.restartedFor == c.template {
			own = append(own, p.status)
		}
	}
	if len(own) == 0 {
		return
	}
	v := decide(simulatedUses, api.ParseVersions(c.own), own, all)
	switch {
	case len(v.changed) == 0:
		c.own = v.current.String()
	case !v.lagging || !waits:
		c.own = v.current.String()
		c.template = c.own
		c.rollouts++
	}
}

// replace lets the rollout replace a pod.
func (c *simulated) replace() {
	for i := range c.pods {
		if c.pods[i].restartedFor != c.template {
			c.pods[i] = c.start()
			return
		}
	}
}

// TestRotation checks the law of rotation: whatever happens in whatever order, the annotations end as
// a function of the versions in the vault, no pod keeps an old version, each new version causes at
// most one rollout, and files alone cause none.
func TestRotation(t *testing.T) {
	for seed := range uint64(2_000) {
		random := rand.New(rand.NewPCG(seed, 1))
		c := &simulated{vault: map[string]int{"env": 1, "part": 1, "file": 1}, now: 1000}
		for range 1 + random.IntN(4) {
			c.pods = append(c.pods, c.start())
		}
		c.review(c.pods, true)
		if c.rollouts > 0 {
			t.Fatalf("seed %d: the first look restarts the workload", seed)
		}
		changes, log := 0, []string{}
		for range random.IntN(30) {
			c.now += random.Int64N(100)
			p := &c.pods[random.IntN(len(c.pods))]
			action := random.IntN(9)
			log = append(log, strconv.Itoa(action))
			switch action {
			case 0:
				c.vault["env"]++
				changes++
			case 1:
				c.vault["part"]++
				changes++
			case 2:
				c.vault["file"]++
			case 3, 4:
				c.publish(p)
			case 5:
				c.replace()
			case 6:
				c.review(c.pods, random.IntN(4) > 0)
			case 7:
				c.review(c.stale, true)
				c.stale = slices.Clone(c.pods)
			case 8:
				c.pods = append(c.pods, c.start())
			}
		}
		for range 3 { // everything settles
			for i := range c.pods {
				c.now += 100
				c.publish(&c.pods[i])
			}
			c.review(c.pods, true)
			for range c.pods {
				c.replace()
			}
		}
		want := fmt.Sprintf("vault/secret/env@v%d,vault/secret/part@v%d", c.vault["env"], c.vault["part"])
		if c.own != want {
			t.Fatalf("seed %d, %v: the workload has %s, want %s", seed, log, c.own, want)
		}
		if c.rollouts > changes {
			t.Fatalf("seed %d, %v: %d rollouts for %d new versions", seed, log, c.rollouts, changes)
		}
		for i, p := range c.pods {
			if p.started["env"] != c.vault["env"] || p.started["part"] != c.vault["part"] {
				t.Fatalf("seed %d, %v: pod %d of %d has %v, the vault %v", seed, log, i, len(c.pods), p.started, c.vault)
			}
		}
	}
}

// TestDecide has the statuses of the pods of a workload that uses the objects env and part. Each is the
// version of env, that of part, how long after the mount they last changed, and when the pod started;
// with an asterisk, it is of a pod of another workload.
func TestDecide(t *testing.T) {
	for behaviour, test := range map[string]struct {
		held     string
		statuses []string
		current  string // the versions of env and part
		changed  int
		lagging  bool
	}{
		"a first look":                           {"", []string{"1 1 0", "1 1 0"}, "1 1", 0, false},
		"a first look long after a new version":  {"", []string{"2 1 99"}, "2 1", 0, false},
		"nothing new":                            {"1 1", []string{"1 1 0", "1 1 99"}, "1 1", 0, false},
		"no status":                              {"1 1", nil, "1 1", 0, false},
		"a new version":                          {"1 1", []string{"2 1 99", "2 1 98"}, "2 1", 1, false},
		"two new versions":                       {"1 1", []string{"2 3 99"}, "2 3", 2, false},
		"a node that lags":                       {"1 1", []string{"2 1 99", "1 1 0"}, "2 1", 1, true},
		"a node that lags, for a file only":      {"1 1", []string{"1 2 99", "1 1 0"}, "1 2", 1, false},
		"another workload's node that lags":      {"1 1", []string{"2 1 99", "1 1 0*"}, "2 1", 1, true},
		"a pod that lags behind two versions":    {"1 1", []string{"2 1 50", "3 1 99"}, "3 1", 1, true},
		"pods that started with a new version":   {"1 1", []string{"2 1 0", "2 1 0"}, "2 1", 0, false},
		"one pod that did, and one that lags":    {"1 1", []string{"1 1 0", "2 1 0 2000"}, "2 1", 1, true},
		"one pod that did, and one that did not": {"1 1", []string{"2 1 100", "1 1 0"}, "2 1", 1, true},
		"an object that no status has":           {"1 1", []string{"2 - 99"}, "2 1", 1, false},
		"a new object":                           {"1 -", []string{"1 7 99"}, "1 7", 0, false},
		"a version that is no text of Key Vault": {"1 1", []string{"2,x@3 1 99"}, "1 1", 0, false},
		"a version that comes back":              {"2 1", []string{"1 1 99"}, "1 1", 1, false},
	} {
		t.Run(behaviour, func(t *testing.T) {
			versions := func(env, part string) (list []objectVersion) {
				for id, version := range map[string]string{"secret/env": env, "secret/part": part, "secret/file": "9"} {
					if version != "-" && version != "" {
						list = append(list, objectVersion{share(id), share(version)})
					}
				}
				return list
			}
			text := func(v api.Versions) string {
				return strings.TrimSpace(v["vault/secret/env"] + " " + v["vault/secret/part"])
			}
			var own, all []status
			for _, line := range test.statuses {
				var env, part string
				var after, start int64
				if _, err := fmt.Sscan(strings.TrimSuffix(line, "*")+" 1000", &env, &part, &after, &start); err != nil {
					t.Fatal(err)
				}
				s := status{class: share("kv"), created: start, changed: start + after, versions: versions(env, part)}
				if all = append(all, s); !strings.HasSuffix(line, "*") {
					own = append(own, s)
				}
			}
			held := api.Versions{}
			env, part, _ := strings.Cut(test.held, " ")
			for _, v := range versions(env, part) {
				if id := v.id.Value(); id != "secret/file" {
					held["vault/"+id] = v.version.Value()
				}
			}
			got := decide(simulatedUses, held, own, all)
			if text(got.current) != test.current || len(got.changed) != test.changed || test.changed > 0 && got.lagging != test.lagging {
				t.Errorf("%s, %v changed, lagging %t; want %s, %d changed, lagging %t",
					text(got.current), got.changed, got.lagging, test.current, test.changed, test.lagging)
			}
		})
	}
}
