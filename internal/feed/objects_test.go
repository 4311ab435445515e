package feed_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/akv-injector/akv-injector/internal/feed"
)

var _ cache.TransformingStore = (*feed.Objects[*corev1.Secret])(nil)

// secret returns a Secret in namespace shop.
func secret(name, version string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, ResourceVersion: version}}
}

func TestObjects(t *testing.T) {
	type store = feed.Objects[*corev1.Secret]
	for behaviour, test := range map[string]struct {
		write func(*store) error
		want  []string // names and versions
		err   string
	}{
		"an object is added":                {write: func(s *store) error { return s.Add(secret("b", "2")) }, want: []string{"a/1", "b/2"}},
		"an object is updated":              {write: func(s *store) error { return s.Update(secret("a", "2")) }, want: []string{"a/2"}},
		"an object is deleted":              {write: func(s *store) error { return s.Delete(secret("a", "2")) }},
		"all objects are replaced":          {write: func(s *store) error { return s.Replace([]any{secret("b", "2")}, "2") }, want: []string{"b/2"}},
		"an object of another type fails":   {write: func(s *store) error { return s.Add(&corev1.Pod{}) }, want: []string{"a/1"}, err: "must be a *v1.Secret, is *v1.Pod"},
		"a deletion of another type fails":  {write: func(s *store) error { return s.Delete("a") }, want: []string{"a/1"}, err: "must be a *v1.Secret, is string"},
		"a replacement of other type fails": {write: func(s *store) error { return s.Replace([]any{1}, "2") }, err: "must be a *v1.Secret, is int"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			var objects *store
			var seen [][]string // by changed
			list := func() (names []string) {
				for _, o := range objects.All() {
					names = append(names, o.Name+"/"+o.ResourceVersion)
				}
				slices.Sort(names)
				return names
			}
			objects = feed.NewObjects[*corev1.Secret](func() { seen = append(seen, list()) })
			if err := objects.Add(secret("a", "1")); err != nil {
				t.Fatal(err)
			}
			wantSeen := [][]string{{"a/1"}}
			text := ""
			if err := test.write(objects); err != nil {
				text = err.Error()
			} else {
				wantSeen = append(wantSeen, test.want)
			}
			if text != test.err {
				t.Errorf("error %q, want %q", text, test.err)
			}
			if diff := cmp.Diff(test.want, list()); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(wantSeen, seen); diff != "" {
				t.Errorf("objects at each change (-want +got):\n%s", diff)
			}
			_, found := objects.Find(types.NamespacedName{Namespace: "shop", Name: "a"})
			if want := slices.ContainsFunc(test.want, func(s string) bool { return s[:2] == "a/" }); found != want {
				t.Errorf("found: %t, want %t", found, want)
			}
		})
	}
}
