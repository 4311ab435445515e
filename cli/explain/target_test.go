package explain_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/cli/explain"
)

func TestParseTarget(t *testing.T) {
	for behaviour, test := range map[string]struct {
		args []string
		want string // empty for an error
	}{
		"one word":                     {[]string{"pod/web-0"}, "Pod shop/web-0"},
		"two words":                    {[]string{"deploy", "web"}, "Deployment shop/web"},
		"a kind with its group":        {[]string{"deployment.apps/web"}, "Deployment shop/web"},
		"a kind in capitals":           {[]string{"CronJob/nightly"}, "CronJob shop/nightly"},
		"a namespace has no namespace": {[]string{"ns/other"}, "Namespace other"},
		"a name alone":                 {args: []string{"web"}},
		"an unknown kind":              {args: []string{"service/web"}},
		"no name":                      {args: []string{"pod/"}},
		"no kind":                      {args: []string{"/web"}},
		"a path":                       {args: []string{"pod/web/log"}},
		"a path as the second of two":  {args: []string{"pod", "web/log"}},
		"a name with a dot":            {[]string{"sts", "web.example"}, "StatefulSet shop/web.example"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			got := ""
			if target, err := explain.ParseTarget(test.args, "shop"); err == nil {
				got = target.String()
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("target (-want +got)\n%s", diff)
			}
		})
	}
}
