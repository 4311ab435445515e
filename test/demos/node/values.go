package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/akv-injector/akv-injector/test/harness/keyvault"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// generated is a secret of the scene values.
type generated struct {
	// text is what the vault holds, value what the variable must get.
	text, value string
	// property is the member of the object that the variable gets; empty for the whole secret.
	property string
	// rule is a part of the message if an env file cannot carry the value.
	rule string
}

// generate returns secrets of every kind in turn.
func generate(random *rand.Rand, count int) []generated {
	words := func(alphabet string, length int) string {
		letters := []rune(alphabet)
		text := make([]rune, length)
		for i := range text {
			text[i] = letters[random.IntN(len(letters))]
		}
		return string(text)
	}
	const ascii = "abcXYZ019 \t\"$`(){}\\#=&;|<>*~!%"
	kinds := []func() generated{
		func() generated { return whole(words(ascii, 1+random.IntN(60))) },
		func() generated { return whole(strings.ReplaceAll(words(ascii+"\n\n\n\r", 200), "\r", "\r.")) },
		func() generated {
			return whole(words("äßéЖ中文字🔑👩\u200d\u0301\uFEFF\u2028 \x01\x7f", 1+random.IntN(60)))
		},
		func() generated { return whole(words(ascii+"\n", 25<<10)) },
		func() generated {
			v := words(ascii+"ä🔑\n", 1+random.IntN(60))
			object, _ := json.Marshal(map[string]any{"db": map[string]string{"password": v, "user": "it's"}, "": nil})
			return generated{text: string(object), property: "db.password", value: v}
		},
		func() generated {
			v := fmt.Sprintf("%d.%018d", random.Int64(), random.Int64N(1e18))
			return generated{text: `{"port": [` + v + `, true]}`, property: "port", value: "[" + v + ",true]"}
		},
		func() generated { return generated{rule: "must not be empty"} },
		func() generated {
			return generated{text: words(ascii, 20) + "'" + words(ascii, 20), rule: "must not have a single quote"}
		},
		func() generated { return generated{text: words(ascii, 20) + "\r\n", rule: "carriage return"} },
	}
	all := make([]generated, count)
	for i := range all {
		all[i] = kinds[i%len(kinds)]()
	}
	return all
}

// whole returns a secret whose variable gets all of it.
func whole(text string) generated { return generated{text: text, value: text} }

// values compares the env vars of pods with generated secrets, byte for byte.
func (s *show) values(ctx context.Context) error {
	const count = 200
	seed := rand.Uint64()
	s.out.Say(fmt.Sprintf("\n  %d secrets, generated with seed %d: quotes, lines, Unicode, 25 KiB, JSON, and values that are refused.", count, seed))
	secrets := generate(rand.New(rand.NewPCG(seed, 0)), count)
	var objects []keyvault.Object
	var accepted, refused []int
	for i, secret := range secrets {
		objects = append(objects, keyvault.Object{
			Kind: keyvault.Secrets, Name: fmt.Sprint("v", i), Versions: []keyvault.Version{{ID: version, Value: secret.text}},
		})
		if secret.rule == "" {
			accepted = append(accepted, i)
		} else {
			refused = append(refused, i)
		}
	}
	s.node.Azure.Put(vaultOf("ten"), vaultWith(objects...))
	defer s.node.Azure.Put(vaultOf("ten"), s.azure.Vaults[vaultOf("ten")])

	var pods []string
	start := func(these []int) (pod string, err error) {
		pod = fmt.Sprint("values-", len(pods))
		pods = append(pods, pod)
		var items []string
		for _, i := range these {
			property := ""
			if secrets[i].property != "" {
				property = "#" + secrets[i].property
			}
			items = append(items, fmt.Sprintf("V%d=v%d%s", i, i, property))
		}
		manifest := fmt.Sprintf(valuesYAML, pod, vaultOf("ten"), strings.Join(items, ", "))
		return pod, s.plane.RunKubectl(ctx, manifest, "apply", "--filename=-")
	}
	for these := range slices.Chunk(accepted, 70) { // more of 25 KiB do not fit into the volume of the env files
		pod, err := start(these)
		if err != nil {
			return err
		}
		if err := s.plane.RunKubectl(ctx, "", "wait", "pod/"+pod, "--namespace=shop", "--for=condition=Ready", "--timeout="+patience.String()); err != nil {
			return err
		}
		environ, err := s.plane.Kubectl(ctx, "exec", "--namespace=shop", pod, "--", "cat", "/proc/1/environ").Output()
		if err != nil {
			return fmt.Errorf("read the variables of pod %s: %w", pod, err)
		}
		got := map[string][]byte{}
		for variable := range bytes.SplitSeq(environ, []byte{0}) {
			name, value, _ := bytes.Cut(variable, []byte("="))
			got[string(name)] = value
		}
		for _, i := range these {
			if value, found := got[fmt.Sprint("V", i)]; !found || string(value) != secrets[i].value {
				return fmt.Errorf("variable V%d must be %q, is %q", i, secrets[i].value, value)
			}
		}
	}
	s.out.Say(fmt.Sprintf("  %d variables have the bytes of the vault.", len(accepted)))
	for these := range slices.Chunk(refused, 10) { // a termination message has room for about 13
		pod, err := start(these)
		if err != nil {
			return err
		}
		if err := process.Within(ctx, patience, "the message", func(ctx context.Context) error {
			message, err := s.plane.Kubectl(ctx, "get", "pod", "--namespace=shop", pod,
				"--output=jsonpath={.status.initContainerStatuses[0].lastState.terminated.message}").Output()
			if err != nil {
				return err
			}
			lines := strings.Split(strings.TrimSpace(string(message)), "\n")
			for n, i := range these {
				if want := fmt.Sprintf("V%d: secret v%d of vault %s: ", i, i, vaultOf("ten")); n >= len(lines) ||
					!strings.HasPrefix(lines[n], want) || !strings.Contains(lines[n], secrets[i].rule) {
					return fmt.Errorf("line %d must begin with %q and have %q; the message is\n%s", n, want, secrets[i].rule, message)
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	s.out.Say(fmt.Sprintf("  The other %d are refused, each with its rule.", len(refused)))
	return s.plane.RunKubectl(ctx, "", append([]string{"delete", "pods", "--namespace=shop", "--grace-period=1"}, pods...)...)
}

// valuesYAML has the name of a pod, its vault and its items.
const valuesYAML = `
apiVersion: v1
kind: Pod
metadata:
  name: %s
  namespace: shop
  annotations:
    keyvault.io/vault: %s
    keyvault.io/env-source: file
    keyvault.io/secrets: %q
spec:
  serviceAccountName: blob-sa
  enableServiceLinks: false
  containers:
  - name: app
    image: nginx
    imagePullPolicy: IfNotPresent
    command: [sleep, "2147483647"]
`
